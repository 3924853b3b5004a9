"""Tables, plots, model cards and reports."""
