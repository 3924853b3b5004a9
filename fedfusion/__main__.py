"""`python -m fedfusion` is `fedfusion`."""

from fedfusion.cli import app

app(prog_name="fedfusion")
