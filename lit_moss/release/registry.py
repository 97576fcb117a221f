"""Registers an exported folder as a version of a model in MLflow's registry."""

import json
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from lit_moss.errors import UserError
from lit_moss.hub.model_folder import ModelRecord
from lit_moss.llm.config import MODEL_TYPE
from lit_moss.llm.folders import read_json
from lit_moss.runs.mlflow_access import find_run, mlflow_errors, open_client

FOLDER = "model"  # folder of the weights, next to the code
_CODE = "model_code.py"


def register(folder: Path, name: str, alias: str | None = None) -> int:
    """Registers an exported folder as a version of a model, which `mlflow models serve` can serve.

    The folder is copied once, directly into MLflow's artifact store: `pyfunc.log_model` would first copy it
    into a temporary folder. It is copied, not referenced, so that a version can still be loaded when the
    folder was replaced, and from other machines. The model belongs to the MLflow run of its weights or, if
    that run no longer exists, to a new run in the experiment NAME. Loading it requires lit_moss.

    Args:
        folder: Exported language model; to listen and speak it needs its codec in `codec/`.
        name: Name of the registered model; created if it does not exist.
        alias: Alias for this version, such as `champion`; moved from the version that has it.

    Returns:
        Number of the version.

    Raises:
        UserError: if the folder does not contain a language model, or MLflow does not answer or rejects a
            name.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("model_type") != MODEL_TYPE:
        raise UserError(f"{folder} is no language model: expected a folder that `export` wrote")
    record = ModelRecord.read(folder)
    with mlflow_errors(f"register {name!r}", "give another name or alias"):
        client = open_client()
        _check_names(client, name, alias)
        experiment_id, run_id = _run(client, record, name)
        model_id = _log(client, folder, name, experiment_id, run_id)
        version = client.create_model_version(name, f"models:/{model_id}", run_id, model_id=model_id)
        # With this tag MLflow's pages link from the model to the version.
        versions = [{"name": name, "version": version.version}]
        client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps(versions)})
        if alias is not None:
            client.set_registered_model_alias(name, alias, version.version)
    return int(version.version)


def _check_names(client: Any, name: str, alias: str | None) -> None:
    """Creates the registered model if it does not exist; called before gigabytes are copied."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_model_alias_name, _validate_model_alias_name_reserved

    if alias is not None:
        _validate_model_alias_name(alias)
        _validate_model_alias_name_reserved(alias)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise


def _run(client: Any, record: ModelRecord, name: str) -> tuple[str, str]:
    """Ids of the experiment and the run that the model belongs to."""
    run = find_run(client, record.run_id) if record.run_id else None
    if run is None:
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        run = client.create_run(experiment_id, run_name=f"register {name}")
        client.set_terminated(run.info.run_id)
    return run.info.experiment_id, run.info.run_id


def _log(client: Any, folder: Path, name: str, experiment_id: str, run_id: str) -> str:
    """Stores the model; returns its id."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    model = client.create_logged_model(experiment_id, name, run_id, model_type="speech-to-speech")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            small = Path(scratch) / "pyfunc"
            _save_without_weights(small, model.model_id, run_id)
            client.log_model_artifacts(model.model_id, str(small))
        client.log_model_artifacts(model.model_id, str(folder), FOLDER)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    except BaseException:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return model.model_id


def _save_without_weights(path: Path, model_id: str, run_id: str) -> None:
    """Saves everything except the weights: MLmodel, code that creates the model, requirements, an example."""
    import mlflow.pyfunc
    from mlflow.models import Model

    from lit_moss.release import pyfunc

    model = Model(model_id=model_id, model_uuid=model_id, run_id=run_id)
    mlflow.pyfunc.save_model(
        path,
        python_model=Path(__file__).with_name(_CODE),
        signature=pyfunc.SIGNATURE,
        input_example=pyfunc.INPUT_EXAMPLE,
        model_config=pyfunc.MODEL_CONFIG,
        # Given explicitly, because MLflow would otherwise load the model to find out.
        pip_requirements=[f"lit-moss[serve]=={metadata.version('lit-moss')}"],
        mlflow_model=model,
    )
    # MLflow writes the full path of the code, but reads the file of that name next to MLmodel.
    model.flavors[mlflow.pyfunc.FLAVOR_NAME]["model_code_path"] = _CODE
    model.save(path / "MLmodel")
