"""Images from a network alone: a data set that this tool and any other can use."""

from __future__ import annotations

import json

import typer

from fdda_deploy.cli.options import Options, takes_options
from fdda_deploy.cli.results import print_build, print_json
from fdda_deploy.cli.stages import examples, result_of

app = typer.Typer()


@app.command(
    epilog=examples(
        "synthesize digits",
        "synthesize resnet18 --recipe gdfq",
        "synthesize resnet18 --num-images 1024 --out images/",
        "build resnet18 --calib-data images/synthetic/images.npz --recipe none",
    )
)
@takes_options
def synthesize(options: Options) -> None:
    """Make images from the network: images.npz, a PNG folder per class, synthesis.json."""
    result = result_of("synthesize", options)
    folder = result.out / "synthetic"
    made = (folder / "images.npz").is_file()
    if made:
        from fdda_deploy.pipeline.folder_lock import locked
        from fdda_deploy.pipeline.stages.image_folders import write_image_folders

        with locked(result.out):
            count = write_image_folders(folder / "images.npz", folder / "classes")
        result.lines.append(("images", f"{count} in {folder}"))
    if options.json_output and made:
        summary = json.loads((folder / "synthesis.json").read_text(encoding="utf-8"))
        print_json({"out": str(folder), **summary})
    else:
        print_build(result, as_json=options.json_output, quiet=options.quiet)
