"""An adapter goes to the Hugging Face hub."""

import shlex
from pathlib import Path

from fedfusion import __version__
from fedfusion.types import FedfusionError, RunFailed


def check(repo: str) -> None:
    """Refuse what is known to fail before anything is computed.

    Raises
    ------
    FedfusionError
        If `repo` is no `user/name`, the network is forbidden, or there is no token.
    """
    from huggingface_hub import get_token, is_offline_mode
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        named = repo.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise FedfusionError(
            f"push_to_hub={repo} cannot be the name of a repository of the Hugging Face hub (give user/name, of "
            "letters, digits, '-', '_' and '.')"
        )
    if is_offline_mode():
        raise FedfusionError(
            f"push_to_hub={repo} needs the network, which HF_HUB_OFFLINE=1 forbids (unset it, or leave push_to_hub out)"
        )
    if get_token() is None:
        raise FedfusionError(
            f"push_to_hub={repo} needs a token that may write there, and none is stored (`hf auth login`, or set "
            "HF_TOKEN; or leave push_to_hub out)"
        )


def push(folder: Path, repo: str) -> str:
    """Upload `folder` into the repository `repo`, and return its address.

    A repository that does not exist is made, and private; one that exists stays as visible as it is.

    Raises
    ------
    RunFailed
        With the command that tries it again; `folder` stays as it is.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hub, shown = HfApi(library_name="fedfusion", library_version=__version__), not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        address = hub.create_repo(repo, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"fedfusion {__version__}")
    except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:  # the hub's own are some of these
        said = error.server_message if isinstance(error, HfHubHTTPError) else None
        reason = (said or str(error) or type(error).__name__).strip().splitlines()[0]
        again = shlex.join(["hf", "upload", repo, str(folder), ".", "--private"])
        raise RunFailed(f"push_to_hub={repo}: {reason} (nothing is lost; to try again: {again})") from error
    finally:
        if shown:
            enable_progress_bars()
    return str(address)
