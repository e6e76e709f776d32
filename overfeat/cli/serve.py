"""`overfeat serve`: a page with a camera, and a REST interface.

Open the address that is printed in a browser: the nets see what the camera sees, or pictures that are dropped on the
page, and it shows the best classes, heat maps and boxes. The same by REST: curl --data-binary @photo.jpg
http://127.0.0.1:8000/v1/classify; the interface is described at /openapi.json. The nets are those that ship and the
weights that are given; they always run on the fast backends (--fast). Needs the extra serve.

Examples:
    overfeat serve
    overfeat serve run/net.safetensors --port 9000
    OVERFEAT_TOKEN=secret overfeat serve --host 0.0.0.0 --certificate cert.pem --key key.pem
"""

import argparse
import importlib
import os
from pathlib import Path

from overfeat.cli.command import Commands, add_command
from overfeat.cli.options import add_options, config_from_args
from overfeat.serve.config import ServeConfig


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "serve", run, __doc__)
    help = "weights written by overfeat (safetensors), served beside those that ship under their files' names"
    parser.add_argument("weights", nargs="*", type=Path, metavar="WEIGHTS", help=help)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
    add_options(parser.add_argument_group("server"), ServeConfig)


def run(args: argparse.Namespace) -> int:
    """Serve until the process is stopped."""
    args.token = args.token or os.environ.get("OVERFEAT_TOKEN") or None
    config = config_from_args(ServeConfig, args)
    from overfeat.serve.models import load_models
    from overfeat.serve.run import serve
    from overfeat.training.distributed import choose_device

    importlib.import_module("overfeat.fast")
    serve(load_models(args.weights, choose_device(args.device)), config)
    return 0
