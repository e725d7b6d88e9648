"""`python -m must.main --config=configs/X.py[:variant] --workdir=DIR [--stage=S] [--config.a.b=value] [--dry_run]`.

The only file that reads flags: it parses, prepares the process and delegates to a recipe.
"""

import os
import signal
import sys
import threading
import traceback
from types import FrameType

# Read by JAX when it is imported, which a configuration file may do: jobs and later runs share compiled programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/must/xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/X.py[:variant]; --config.a.b=value overrides.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written; running again resumes.")
_WORKDIRS = flags.DEFINE_list("workdirs", [], "With --stage=compare: finished workdirs, side by side in --workdir.")
_STAGE = flags.DEFINE_string("stage", "all", "'all' or one stage of the recipe.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Resolve and check everything, estimate, write nothing.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, or 'auto' on a cluster.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes take part.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")


def main(argv: list[str]) -> None:
    """Runs the recipe that the configuration names; a mistake of the user ends in one line and exit code 2."""
    from must.core.types import UserError

    signal.signal(signal.SIGTERM, _terminated)
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}: overrides are --config.key=value")
        if not flags.FLAGS["config"].present:
            raise UserError("--config=configs/X.py is required")
        several = (_PROCESSES.value, _PROCESS_ID.value)
        if _COORDINATOR.value is None and several != (None, None):
            raise UserError("--processes and --process_id need --coordinator=host:port of process 0")
        if not _WORKDIR.value and not _DRY_RUN.value:
            raise UserError("--workdir=DIR is required")
        for workdir in (_WORKDIR.value or "", *_WORKDIRS.value):
            if "://" in workdir:
                raise UserError(f"--workdir={workdir}: expected a folder; object stores are not supported")
        _run()
    except UserError as error:
        print(f"must: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"must: {error.filename}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:  # Ctrl-C, or the name of a signal
        print(f"must: {stopped or 'interrupted'}; the same command resumes", file=sys.stderr)
        sys.exit(143 if str(stopped) else 130)


def _terminated(number: int, frame: FrameType | None) -> None:
    """Ends like Ctrl-C, so that jobs are put away; a moment later where an exception would be ignored."""
    if frame is not None and frame.f_code.co_name == "_xla_gc_callback":
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
    else:
        raise KeyboardInterrupt("terminated")


def _run() -> None:
    from must.core import devices, notices
    from must.core.types import UserError
    from must.experiment.run import check_stage, run
    from must.recipes.table import recipe_of

    notices.plain_lines()
    logging.set_verbosity(logging.WARNING)  # JAX reports every backend that it does not have
    devices.set_xla_flags()
    devices.initialize_distributed(_COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value)
    config = _CONFIG.value
    if not isinstance(config, ConfigDict):
        raise UserError(f"{_config_file(sys.argv)}: get_config() returns {config!r}; it must return a ConfigDict")
    config = config.to_dict()
    recipe = recipe_of(config)
    check_stage(recipe, _STAGE.value)
    if _DRY_RUN.value:
        from must.recipes.table import dry_run

        dry_run(recipe, config)
        return
    workdirs = [os.path.abspath(workdir) for workdir in _WORKDIRS.value]
    run(recipe, config, os.path.abspath(_WORKDIR.value), stage=_STAGE.value, workdirs=workdirs)


def _parse(argv: list[str]) -> list[str]:
    """absl's parser with its mistakes as one line each."""
    try:
        path = _config_file(argv)
        if path is not None and not os.path.isfile(path):
            raise ValueError(f"--config={path}: {'a folder, not a file' if os.path.isdir(path) else 'no such file'}")
        logging.set_verbosity(logging.ERROR)  # ml_collections warns of what is an error here
        return flags.FLAGS(argv)
    except Exception as error:  # a configuration file may raise anything
        print(f"must: {_one_line(error, path)}", file=sys.stderr)
        sys.exit(2)


def _one_line(error: Exception, path: str | None) -> str:
    """What went wrong, with file and line where the configuration file itself did."""
    cause: BaseException | None = error
    while cause is not None:  # absl and ml_collections wrap what a configuration raises
        if isinstance(cause, SyntaxError) and cause.filename == path:
            return f"{path}:{cause.lineno}: {cause.msg}"
        if lines := _lines_in(cause, path):
            return f"{path}:{lines[-1]}: {type(cause).__name__}: {' '.join(str(cause).split())}"
        cause = cause.__context__
    if isinstance(error, StopIteration):
        return "an override needs a value: --config.key=value"
    text = " ".join(str(error.args[1] if len(error.args) > 1 else error).split())
    if isinstance(error, KeyError | AttributeError):  # ml_collections packs its hint into the key, twice quoted
        if "has no attribute 'get_config'" in text:
            return f"{path}: has no get_config(); a configuration file defines one that returns a ConfigDict"
        text = "no such key: " + " ".join(text.replace("\\n", "; ").translate(_NO_QUOTES).split())
    return text or type(error).__name__


def _lines_in(error: BaseException, path: str | None) -> list[int | None]:
    """The lines of the configuration file that an exception has passed through."""
    return [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]


_NO_QUOTES = str.maketrans("", "", "\\'\"")


def _config_file(argv: list[str]) -> str | None:
    """The file of the last --config, given as --config=FILE or --config FILE, without its variant."""
    path = None
    for place, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            path = value if equals else argv[place + 1] if place + 1 < len(argv) else ""
    return path and path.partition(":")[0]


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
