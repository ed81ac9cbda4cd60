from __future__ import annotations

import re
from pathlib import Path

from thumbwheel import keys
from thumbwheel.keys import Keys


def test_all_keys_of_a_namespace_share_one_slot() -> None:
    made = Keys("a")
    names = [value for name, value in vars(made).items() if not name.startswith("_")]
    names += [made.turn("t"), made.current("t"), made.rated_by("r{x}"), made.answers("v"), made.idempotency("r", "{y}")]
    assert all(name.startswith("{thumbwheel:a}:") for name in names)
    assert len(set(names)) == len(names)


def test_namespaces_do_not_meet() -> None:
    assert Keys("a").live != Keys("b").live


def test_every_key_is_documented() -> None:
    documented = set(re.findall(r"^\.{3}:(\w+)|^ +\.{3}:(\w+)", keys.__doc__ or "", re.MULTILINE))
    flat = {name for pair in documented for name in pair if name}
    public = {name for name in [*vars(Keys("a")), *vars(Keys)] if not name.startswith("_")}
    assert flat == public


def test_no_key_is_made_elsewhere() -> None:
    package = Path(keys.__file__).parent
    for path in [*package.glob("*.py"), *package.glob("lua/*.lua")]:
        assert path.name == "keys.py" or "{thumbwheel:" not in path.read_text(encoding="utf-8"), path
