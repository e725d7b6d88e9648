from typing import NamedTuple


class Section(NamedTuple):
    title: str
    html: str
    text: str = ""


def curves_section(curves):
    return Section("curves", "")


def pictures_section(grids):
    return Section("p", "")


def label_states_section(c):
    return Section("l", "")


def weights_section(w, s=""):
    return Section("w", "")


def confusion_section(c, *a):
    return Section("w", "")


def clips_section(c):
    return Section("w", "")


def write_page(path, *, title, results, sections, settings):
    open(path, "w").write(title)
