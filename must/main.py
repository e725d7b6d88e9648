"""`python -m must.main --config=configs/X.py[:variant] --workdir=DIR [--stage=S] [--config.a.b=value] [--dry_run]`.

The only file that reads flags: it parses, prepares the process and delegates to a recipe.
"""

import os
import sys
import time

# Read by JAX when it is imported, which a configuration file may do: jobs and later runs share compiled programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/must/xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

from absl import app, flags, logging
from ml_collections import config_flags

from must.experiment.config_file import config_file, one_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/X.py[:variant]; --config.a.b=value overrides.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written; running again resumes.")
_WORKDIRS = flags.DEFINE_list("workdirs", [], "With --stage=compare: finished workdirs, side by side in --workdir.")
_STAGE = flags.DEFINE_string("stage", "all", "'all' or one stage of the recipe.")
_PART = flags.DEFINE_string("part", "", "With --stage=label: K/N, part K (from 0) of N, in a workdir that they share.")
_IMAGES = flags.DEFINE_string("images", "", "With --stage=predict: a folder, a picture or a video.")
_OUTPUT = flags.DEFINE_string("output", "", "With --stage=predict: where to; WORKDIR/predictions/NAME by default.")
_BEAM = flags.DEFINE_string("beam", None, "With --stage=label: options of the Apache Beam pipeline that labels.")
_OPTIONS = flags.DEFINE_string("options", "", "Of export, predict and evaluate: {...} as JSON or Python, or a file.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Resolve and check everything, estimate, write nothing.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, or 'auto' on a cluster.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes take part.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")


def main(argv: list[str]) -> None:
    """Runs the recipe that the configuration names; a mistake of the user ends in one line and exit code 2."""
    from must.core import stopping
    from must.core.types import UserError

    stopping.install()
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}: overrides are --config.key=value")
        several = (_PROCESSES.value, _PROCESS_ID.value)
        if _COORDINATOR.value is None and several != (None, None):
            raise UserError("--processes and --process_id need --coordinator=host:port of process 0")
        _run()
    except UserError as error:
        _mistake(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _mistake(f"{error.filename}: {error.strerror or error}")
    except Exception:
        time.sleep(
            5 if _COORDINATOR.value else 0
        )  # where a lost process is behind it, `peers` says so and ends this one
        raise
    except KeyboardInterrupt as stopped:  # Ctrl-C, or the name of a signal
        print(f"must: {stopped or 'interrupted'}; the same command resumes", file=sys.stderr)
        sys.exit(143 if str(stopped) else 130)


def _mistake(line: str) -> None:
    """Ends with a line and exit code 2; at once among several processes, whose end would wait for the others'."""
    print(f"must: {line}", file=sys.stderr, flush=True)
    if _COORDINATOR.value is not None:
        sys.stdout.flush()
        os._exit(2)
    sys.exit(2)


def _run() -> None:
    from must.core import devices, notices, peers
    from must.recipes.start import Request, start

    notices.plain_lines()
    logging.set_verbosity(logging.WARNING)  # JAX reports every backend that it does not have
    devices.set_xla_flags()
    devices.initialize_distributed(_COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value)
    peers.watch(_COORDINATOR.value)
    request = Request(_IMAGES.value, _OUTPUT.value, _OPTIONS.value)
    config = _CONFIG.value if flags.FLAGS["config"].present else None
    options = {"workdirs": _WORKDIRS.value, "request": request, "dry_run": _DRY_RUN.value, "part": _PART.value}
    options["beam"] = _BEAM.value
    try:
        start(config, config_file(sys.argv), _WORKDIR.value or "", stage=_STAGE.value, **options)
    except KeyboardInterrupt:  # of all processes
        peers.leave()
        raise
    peers.leave()


def _parse(argv: list[str]) -> list[str]:
    """absl's parser with its mistakes as one line each."""
    try:
        path = config_file(argv)
        if path is not None and not os.path.isfile(path):
            raise ValueError(f"--config={path}: {'a folder, not a file' if os.path.isdir(path) else 'no such file'}")
        logging.set_verbosity(logging.ERROR)  # ml_collections warns of what is an error here
        return flags.FLAGS(argv)
    except Exception as error:  # a configuration file may raise anything
        print(f"must: {one_line(error, path)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
