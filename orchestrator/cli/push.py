"""Upload a model folder to the hub. Nothing else of this project sends a model anywhere."""

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from tailsweep.trainables.errors import InputError, describe_error
from tailsweep.trainables.text_classifiers import open_text_classifier


def push(folder: str, repo: str, private: bool) -> str:
    """Upload a model folder, with its card, and return where it is.

    Args:
        folder: ``best/`` of a run directory, or another folder that ``predict`` takes.
        repo: ``user/name`` on the hub; created if it is not there.
        private: whether a new repository is private.

    Raises:
        InputError: The folder is no model, or the hub refuses it.
    """
    open_text_classifier(folder)  # what cannot be opened is of no use to anybody
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        pushed = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Model trained by tailsweep")
    except LocalTokenNotFoundError as error:
        raise InputError("the hub needs a token that may write: export HF_TOKEN, or run `hf auth login`") from error
    except OfflineModeIsEnabled as error:
        raise InputError("HF_HUB_OFFLINE is set, so that nothing can be uploaded: unset it") from error
    except HFValidationError as error:
        raise InputError(f'REPO is "{repo}", but must be user/name, as on the hub: {describe_error(error)}') from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise InputError(
            f'REPO: the hub does not take "{repo}": {describe_error(error)}; check the name, the network and '
            "whether the token may write"
        ) from error
    return str(getattr(pushed, "repo_url", pushed))
