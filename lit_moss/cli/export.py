"""Exports a run, a checkpoint or a model folder to a folder in the released layout.

    python -m lit_moss export runs/sft --out models/mine --codec runs/flow_decoder
    python -m lit_moss export runs/sft --out models/mine --dtype bfloat16 --push-to-hub OWNER/NAME

Runs in one process, one tensor at a time, also for FSDP2 and DeepSpeed folders of shards. Runs of a codec
(conf/codec_encoder.yaml, conf/flow_decoder.yaml) are exported as a codec folder, runs of conf/vocoder.yaml as
a vocoder folder.
"""

import argparse
from pathlib import Path

from lit_moss.cli.options import add_log_mel_argument, add_vocoder_argument
from lit_moss.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument(
        "model",
        metavar="RUN_OR_CKPT",
        help="a run's folder or RUN_ROOT/NAME (its newest run), a checkpoint, a folder in the released "
        "layout, or a hub id",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        help="which one of a run (default: last; best of a codec's)",
    )
    parser.add_argument(
        "--average",
        type=int,
        default=1,
        metavar="K",
        help="the mean of the run's last K states, step-*.ckpt (default 1)",
    )
    parser.add_argument(
        "--dtype",
        choices=("stored", "float32", "bfloat16"),
        default="stored",
        help="of the weights: stored (default) is the checkpoint's own, usually float32: the same model to "
        "the bit; bfloat16 is that of released models, half the size",
    )
    parser.add_argument(
        "--max-shard-size",
        default="5GB",
        metavar="SIZE",
        help="most bytes of a file of weights (default 5GB)",
    )
    parser.add_argument(
        "--codec",
        metavar="NAME",
        help="run, checkpoint, folder or hub id of the codec, copied into DIR/codec (default: that of the "
        "folder, or of the folder that a run was fine-tuned from)",
    )
    add_log_mel_argument(parser)
    add_vocoder_argument(parser)
    parser.add_argument("--license", metavar="SPDX", help="licence of the weights, such as apache-2.0")
    parser.add_argument("--force", action="store_true", help="replace a model's folder at DIR")
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="upload the folder to this repository of the hub"
    )
    parser.add_argument(
        "--public", action="store_true", help="a repository that is made is public (default: private)"
    )
    parser.add_argument(
        "--register", metavar="NAME", help="a new version of this model in MLflow's model registry"
    )
    parser.add_argument("--alias", metavar="ALIAS", help="alias of that version, such as champion")


def main(args: argparse.Namespace) -> None:
    """Exports, prints one line, and then pushes and registers."""
    from lit_moss.release.export import export

    if args.alias is not None and not args.register:
        raise UserError(f"--alias {args.alias} names a registered version: give --register NAME as well")
    if args.public and not args.push_to_hub:
        raise UserError("--public is for a repository of the hub: give --push-to-hub OWNER/NAME as well")
    if args.push_to_hub:
        from lit_moss.release.push import check_push

        check_push(args.push_to_hub)  # before minutes of writing
    made = export(
        args.model,
        args.out,
        which=args.checkpoint,
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        average=args.average,
        codec=args.codec,
        license=args.license,
        force=args.force,
        log_mel=args.log_mel,
        vocoder=args.vocoder,
    )
    what = f"{made.tensors} tensors" if made.tensors else "a codec"
    print(f"{made.folder}: {what}, {made.gigabytes:.2f} GB")
    if args.push_to_hub:
        from lit_moss.release.push import push

        print(push(made.folder, args.push_to_hub, private=not args.public))
    if args.register:
        from lit_moss.release.registry import register

        version = register(made.folder, args.register, args.alias)
        print(f"{args.register} version {version}{f' ({args.alias})' if args.alias else ''}")
