"""The log's lines: a changed, cut or rewritten one is named, and the sound copy is believed."""

from dataclasses import replace

import pytest

from src.tracking.promotion_log import FIRST, Entry, champions, parse, read_together


def entries(*moves: tuple[str, int | None, int | None]) -> list[Entry]:
    """Champion moves (action, from, to), chained."""
    made: list[Entry] = []
    for number, (action, old, new) in enumerate(moves, start=1):
        entry = Entry(
            number=number,
            utc="2026-01-02T03:04:05+00:00",
            who="a@b",
            action=action,
            alias="champion",
            from_version=old,
            to_version=new,
            manifest_sha256=str(new) * 64,
            evidence_sha256=None,
            forced=False,
            why="it is better\u2028really",
            previous=made[-1].sha256 if made else FIRST,
        )
        made.append(entry)
    return made


THREE = entries(("register", None, 1), ("register", 1, 2), ("promote", 2, 3))
LINES = [entry.line for entry in THREE]
TAGS = dict(enumerate(LINES, start=1))


def read(lines, tags):
    return read_together(lines, tags, file_name="log.jsonl")


def test_sound_copies_have_nothing_to_say():
    reading = read(LINES, TAGS)
    assert (reading.entries, reading.problems, reading.is_whole) == (THREE, [], True)
    assert reading.position("champion") == 3


def test_empty_log():
    reading = read([], {})
    assert (reading.entries, reading.last_sha256, reading.position("champion")) == ([], FIRST, None)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_one_changed_byte_anywhere_in_a_line_is_noticed(number):
    """The last line too, which no later one vouches for."""
    line = LINES[number - 1]
    for place in range(0, len(line), 7):
        changed = line[:place] + chr(ord(line[place]) ^ 1) + line[place + 1 :]
        assert parse(changed) is None
    reading = read([*LINES[: number - 1], "x" + line[1:], *LINES[number:]], TAGS)
    assert reading.problems == [f"line {number} of log.jsonl was changed"]
    assert (reading.entries, reading.is_whole) == (THREE, True)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_cut_line_is_noticed_and_known_from_the_other_copy(number):
    cut = [line for line in LINES if line != LINES[number - 1]]
    reading = read(cut, TAGS)
    assert reading.problems == [f"line {number} is missing from log.jsonl"]
    assert reading.entries == THREE
    reading = read(LINES, {n: line for n, line in TAGS.items() if n != number})
    assert reading.problems == [f"line {number} is missing from the registered model's tags"]
    assert reading.entries == THREE


def test_changed_tag_is_named():
    reading = read(LINES, {**TAGS, 2: TAGS[2] + " "})
    assert reading.problems == ["tag promotion.000002 of the registered model was changed"]
    assert reading.entries == THREE


def test_line_rewritten_with_its_digest_is_no_link_of_the_chain():
    """Somebody who recomputes the SHA-256 still contradicts the next line, or the other copy."""
    forged = replace(THREE[1], why="forged")
    reading = read([LINES[0], forged.line, LINES[2]], TAGS)
    assert reading.problems == ["line 2 of log.jsonl is not what the registered model has"]
    reading = read([LINES[0], forged.line, LINES[2]], {**TAGS, 2: forged.line})
    assert reading.problems == ["line 3 doesn't follow from the line before it"]
    assert not reading.is_whole


def test_line_lost_in_both_copies():
    reading = read(LINES[:1] + LINES[2:], {1: LINES[0], 3: LINES[2]})
    assert reading.problems[0] == "line 2 is lost in both copies"
    assert not reading.is_whole
    assert reading.n_lines == 3


def versions(*moves):
    return [version for version, _ in champions(entries(*moves))]


def test_rollback_goes_back_one_champion_and_twice_goes_back_two():
    promoted = [("register", None, 1), ("register", 1, 2), ("register", 2, 3)]
    assert versions(*promoted) == [1, 2, 3]
    assert versions(*promoted, ("rollback", 3, 2)) == [1, 2]
    assert versions(*promoted, ("rollback", 3, 2), ("rollback", 2, 1)) == [1]
    assert versions(*promoted, ("rollback", 3, 2), ("register", 2, 4)) == [1, 2, 4]


def test_rollback_to_a_version_that_was_champion_twice_takes_the_later_time():
    """Else [1, 2, 1, 3] rolled back to 1 has nothing before it."""
    twice = [("promote", None, 1), ("promote", 1, 2), ("promote", 2, 1), ("promote", 1, 3)]
    assert versions(*twice, ("rollback", 3, 1)) == [1, 2, 1]
    assert versions(*twice, ("rollback", 3, 1), ("rollback", 1, 2)) == [1, 2]


def test_change_that_was_broken_off_is_no_champion():
    """Killed between log line and alias: 3 never was champion, nor was 2 gone back to."""
    promoted = [("register", None, 1), ("register", 1, 2)]
    assert versions(*promoted, ("promote", 2, 3), ("found", 3, 2)) == [1, 2]
    assert versions(*promoted, ("rollback", 2, 1), ("found", 1, 2)) == [1, 2]
    # somebody moved it elsewhere in MLflow's page: that stood
    assert versions(*promoted, ("promote", 2, 3), ("found", 3, 4)) == [1, 2, 3, 4]


def test_lost_alias_is_no_champion():
    assert versions(("register", None, 1), ("found", 1, None), ("found", None, 1)) == [1]
