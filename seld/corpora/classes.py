"""Which classes a corpus has."""

from __future__ import annotations

import json
from contextlib import suppress

from seld.classes import CLASSES_FILE, STARSS_CLASSES, read_class_names
from seld.errors import InputError
from seld.storage import join, local_copy, refusals


def read_classes(corpus: str, root: str) -> tuple[str, ...]:
    """The corpus's own classes where it lists them (``classes.txt``), else those of STARSS.

    Raises:
        InputError: its list is none, or cannot be read.
    """
    own = join(root, CLASSES_FILE)
    try:
        with suppress(FileNotFoundError), local_copy(own) as path:
            return read_class_names(path, known_as=own)
        if corpus == "embedded":
            with suppress(FileNotFoundError), local_copy(join(root, "corpus.json")) as listing:
                return tuple(json.loads(listing.read_text(encoding="utf-8"))["class_names"])
    except refusals(root) as error:
        expected = "one in a folder or bucket that can be read"
        raise InputError(root, "list of classes", str(error), expected) from error
    return STARSS_CLASSES
