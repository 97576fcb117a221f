"""Uploads a model folder to a repository on the Hugging Face hub."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lit_moss.errors import UserError

_NO_PART = ("*.partial", "*.lock", "*.tmp", ".*", "*/.*", "__pycache__/*", "*/__pycache__/*")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def check_push(repo: str) -> None:
    """Checks the requirements of a push, without a connection.

    Args:
        repo: `owner/name`.

    Raises:
        UserError: if there is no token, or the name has another form.
    """
    from huggingface_hub import get_token

    if repo.count("/") != 1:
        raise UserError(f"the repository is {repo!r}, expected owner/name")
    if not get_token():
        raise UserError("no token for the Hugging Face hub: run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repo: str, private: bool = True) -> str:
    """Uploads a folder in a single commit, so that the repository never contains an incomplete model.

    (`upload_folder` commits every five minutes.) The commit deletes weights of an earlier push that the
    folder does not contain: an old `model.safetensors` would be read instead of newer shards. The token is
    that of `hf auth login`, or $HF_TOKEN. To continue an interrupted push, repeat it: data that the hub
    already has is not sent again.

    Args:
        folder: An exported model or codec.
        repo: `owner/name`; created if it does not exist.
        private: Whether a new repository is private; an existing one is not changed.

    Returns:
        URL of the commit.

    Raises:
        UserError: if the token, the connection or the permission to write is missing, or the hub rejects the
            name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json: expected a folder that `export` wrote")
    check_push(repo)
    api = HfApi(library_name="lit-moss")
    # Its first base class is the error of the HTTP library in use: requests, httpx or httpx2, depending on
    # the version.
    http_error: Any = HfHubHTTPError.__mro__[1]
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        message = f"{folder.resolve().name}, by lit_moss"
        return api.create_commit(repo, _changes(api, folder, repo), commit_message=message).commit_url
    except HfHubHTTPError as error:
        raise UserError(_refused(repo, error, error.response.status_code)) from error
    except HFValidationError as error:
        raise UserError(f"the hub does not take the name {repo!r} ({_line(error)})") from error
    except ValueError as error:
        raise UserError(f"the hub does not take the card of {folder} ({_line(error)})") from error
    except (http_error, OSError) as error:  # offline mode is a ConnectionError
        raise UserError(
            f"{api.endpoint} does not answer ({_line(error)}): check the connection, HF_ENDPOINT and "
            f"HF_HUB_OFFLINE, then push {folder} again"
        ) from error


def _changes(api: Any, folder: Path, repo: str) -> list[Any]:
    """The files that the commit adds and deletes."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    paths = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    paths = {name: path for name, path in paths.items() if not _matches(name, _NO_PART)}
    old = [name for name in api.list_repo_files(repo) if _matches(name, _WEIGHTS) and name not in paths]
    return [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in paths.items()),
        *(CommitOperationDelete(path_in_repo=name) for name in old),
    ]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _refused(repo: str, error: Exception, status: int) -> str:
    """One line about an error response."""
    advice = {
        401: "the token is not valid: run `hf auth login` again, or set another HF_TOKEN",
        403: "the token has no right to write there: give a token with the role `write`, or another owner",
        404: "there is no such owner or repository, or the token may not see it",
        429: "too many requests: try again later",
    }.get(status, "try again later; files that were sent are kept")
    return f"the hub refuses to store {repo} ({status}: {_line(error)}): {advice}"


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
