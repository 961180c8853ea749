"""`jaxae convert`: a model from or to the files of another library."""

import jax

from jaxae import _checks, formats
from jaxae.cli import run_folder
from jaxae.cli.options import CommandError, ConvertOptions


def convert(options: ConvertOptions) -> int:
    """`jaxae convert SOURCE DIR --to FORMAT`."""
    _checks.lookup("--to", formats.WRITABLE, options.to)
    out = run_folder.check_folder(options.out, run_folder.RUN)
    if (out / run_folder.METRICS_FILE).exists() or run_folder.is_sweep(out):
        raise CommandError(f"{out} holds a run or a sweep; choose another folder.")
    if not options.overwrite and out.exists() and any(out.iterdir()):
        raise CommandError(
            f"{out} is not empty; choose another folder, or replace the model in it "
            "with --overwrite."
        )
    if out.exists() and any(
        f.recognizes(out) for f in formats.FORMATS.values() if f.name != options.to
    ):
        raise CommandError(
            f"{out} holds a model of another format, which would stay beside the new "
            "one; choose another folder."
        )
    with jax.enable_x64(True):  # so that a float64 model stays one
        model = formats.read(
            options.source,
            format=options.source_format,
            inputs_normalized=options.inputs_normalized,
        )
        ae, params = model.ae, model.params
        formats.save(out, ae, params, format=options.to, metadata=model.metadata)
    print(f"wrote {out}: {options.to}, {ae}{_folded(model)}")
    return 0


def _folded(model: formats.Model) -> str:
    return f"; folded: {', '.join(model.folded)}" if model.folded else ""
