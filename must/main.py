"""`python -m must.main --config=configs/X.py[:variant] --workdir=DIR [--stage=S] [--config.a.b=value] [--dry_run]`.

The only file that reads flags: it parses, prepares the process and delegates to a recipe.
"""

import os
import re
import sys

# Read by JAX when it is imported, which a configuration file may do: jobs and later runs share compiled programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/must/xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

from absl import app, flags, logging
from ml_collections import config_flags

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

    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}: overrides are --config.key=value")
        if not flags.FLAGS["config"].present:
            raise UserError("--config=configs/X.py is required")
        if _WORKDIR.value is None and not _DRY_RUN.value:
            raise UserError("--workdir=DIR is required")
        _run()
    except UserError as error:
        print(f"must: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("must: interrupted; the same command resumes", file=sys.stderr)
        sys.exit(130)


def _run() -> None:
    from must.core import devices, notices
    from must.core.types import UserError
    from must.experiment.run import check_stage, run
    from must.recipes.table import recipe_of

    notices.plain_lines()
    logging.set_verbosity(logging.WARNING)  # JAX reports every backend that it does not have
    devices.set_xla_flags()
    devices.initialize_distributed(_COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value)
    try:
        config = _CONFIG.value.to_dict()
    except OSError:
        raise UserError(f"--config={_config_file()}: no such file") from None
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
        return flags.FLAGS(argv)
    except Exception as error:  # a configuration file may raise anything
        print(f"must: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, KeyError | AttributeError):  # ml_collections packs its hint into the key, twice quoted
        text = "no such key: " + text.replace("\\n", "; ").replace("\\'", "").replace("'", "").replace('"', "")
    if "Traceback" in text:  # a configuration file's own error, wrapped: its last line is the error
        text = re.findall(r"^\w+: (.+)", text, re.MULTILINE)[-1]
    text = " ".join(text.split())
    return text or type(error).__name__


def _config_file() -> str:
    return next(a.split("=")[1].partition(":")[0] for a in reversed(sys.argv) if a.startswith("--config="))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
