"""The rules of form find what they are for, leave the rest alone, and their ratchets only shrink."""

import ast
from textwrap import dedent

import pytest

from scripts.check_form import Sizes, apply_ratchet
from scripts.form_rules import Finding, Source, findings_of_source, findings_of_text, untested_protocols


def source(path: str, text: str) -> Source:
    text = dedent(text)
    return Source(path, text, ast.parse(text))


def rules_broken(path: str, text: str) -> list[str]:
    return [finding.rule for finding in findings_of_source(source(path, text))]


def test_a_long_function_and_a_long_file_are_found_with_their_measure() -> None:
    text = "class Door:\n    def open(self) -> None:\n" + "        pass\n" * 400
    found = {finding.rule: finding for finding in findings_of_source(source("node/door.py", text))}
    assert found["function_lines"].where == "node/door.py::Door.open"
    assert found["function_lines"].measure == 401
    assert found["file_lines"].measure == 402
    assert rules_broken("node/door.py", "class Door:\n    def open(self) -> None:\n" + "        pass\n" * 49) == []


@pytest.mark.parametrize("path", ["node/utils.py", "protocols/helpers/door.py", "node/common.py"])
def test_a_name_that_says_nothing_is_found(path: str) -> None:
    assert rules_broken(path, "") == ["vague_name"]


@pytest.mark.parametrize(
    ("handler", "broken"),
    [
        ("except Exception:\n        pass", ["broad_handler"]),
        ("except:\n        pass", ["broad_handler"]),
        ("except (OSError, BaseException) as error:\n        print(error)", ["broad_handler"]),
        ("except Exception:\n        raise", []),
        ("except Exception as error:\n        raise ValueError from error", []),
        ("except OSError:\n        pass", []),
        ("except Exception:  # boundary: a hook cannot end the node\n        pass", []),
        ("except Exception:\n        # boundary: a peer cannot end the node\n        pass", []),
    ],
)
def test_a_broad_handler_must_raise_or_name_its_boundary(handler: str, broken: list[str]) -> None:
    assert rules_broken("node/door.py", f"def f() -> None:\n    try:\n        g()\n    {handler}\n") == broken


@pytest.mark.parametrize(
    ("body", "broken"),
    [
        ("async def test_x():\n    await trio.sleep(1)\n    assert True", ["real_sleep"]),
        ("def test_x():\n    time.sleep(1)\n    assert True", ["real_sleep"]),
        ("async def test_x():\n    await trio.sleep_until(9)\n    assert True", ["real_sleep"]),
        ("def test_x():\n    time.sleep(1)  # real time: another program must notice\n    assert True", []),
        ("async def test_x(autojump_clock):\n    await trio.sleep(1)\n    assert True", []),
        ("async def test_x():\n    await trio.sleep(0)\n    assert True", []),
        ("async def wait():\n    await trio.sleep(1)\nasync def test_x(autojump_clock):\n    assert await wait()", []),
    ],
)
def test_a_test_may_not_sleep_for_real_without_a_reason(body: str, broken: list[str]) -> None:
    assert rules_broken("tests/unit/test_door.py", body) == broken


@pytest.mark.parametrize(
    ("body", "broken"),
    [
        ("def test_x():\n    f()", ["idle_test"]),
        ("def test_x():\n    assert f()", []),
        ("def test_x():\n    with pytest.raises(OSError):\n        f()", []),
        ("def test_x():\n    check_stream(f)", []),
        ("def test_x():\n    f()\ndef f():\n    g()\ndef g():\n    assert h()", []),
        ("def test_x():\n    f()\ndef f():\n    g()\ndef g():\n    h()", ["idle_test"]),
        ("async def test_x():\n    with trio.fail_after(5):\n        await f()", ["idle_test"]),
        ("def test_x():\n    pytest.fail('never')", []),
        ("def not_a_test():\n    f()", []),
    ],
)
def test_a_test_must_assert_something(body: str, broken: list[str]) -> None:
    assert rules_broken("tests/unit/test_door.py", body) == broken


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("# TO" + "DO: later", "unfinished"),
        ("raise NotImplemented" + "Error", "unfinished"),
        ("see /ro" + "ot/door.txt", "machine_path"),
        ("see ../sha" + "red/design.md", "machine_path"),
        ("index = 'https://py" + "pi.org'", "registry_host"),
    ],
)
def test_words_and_places_that_do_not_belong_are_found(line: str, rule: str) -> None:
    assert [(finding.rule, finding.where) for finding in findings_of_text("a.md", f"fine\n{line}\n")] == [
        (rule, "a.md::2")
    ]


def test_a_protocols_module_without_a_test_is_found() -> None:
    module = source("protocols/exchange/picker.py", "")
    assert [finding.where for finding in untested_protocols([module])] == ["protocols/exchange/picker.py"]
    for text in ("from protocols.exchange.picker import pick", "from protocols.exchange import picker"):
        assert list(untested_protocols([module, source("tests/unit/test_picker.py", text)])) == []


def test_a_ratchet_allows_what_stands_and_may_only_shrink() -> None:
    def problems(measure: int, allowed: dict[str, dict[str, int]]) -> list[str]:
        return list(apply_ratchet([Finding("file_lines", "node/a.py", "long", measure)] if measure else [], allowed))

    assert problems(450, {"file_lines": {"node/a.py": 450}}) == []
    assert problems(450, {}) == ["node/a.py: long"]
    assert problems(451, {"file_lines": {"node/a.py": 450}}) == ["node/a.py: long (its ratchet stands at 450)"]
    assert "lower" in problems(449, {"file_lines": {"node/a.py": 450}})[0]
    assert "remove" in problems(0, {"file_lines": {"node/a.py": 450}})[0]


def test_sizes_tell_the_tail() -> None:
    assert Sizes.of([]) == Sizes(0, 0, 0)
    assert Sizes.of([7]) == Sizes(7, 7, 7)
    assert Sizes.of([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 100]) == Sizes(6, 10, 100)
