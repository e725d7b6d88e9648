"""What is wrong with a configuration file or its overrides, as one line of what absl and ml_collections raise."""

import traceback


def one_line(error: Exception, path: str | None) -> str:
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


def config_file(argv: list[str]) -> str | None:
    """The file of the last --config, given as --config=FILE or --config FILE, without its variant."""
    path = None
    for place, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            path = value if equals else argv[place + 1] if place + 1 < len(argv) else ""
    return path and path.partition(":")[0]
