"""The report: every number from a file, nothing missing, nothing on top of anything else, and the same bytes each time."""

import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from gzpaper import paper
from gzpaper.files import read_yaml
from gzpaper.report import _compile, _stage_report
from gzpaper.scores import CHALLENGE_MEAN, LEADERBOARD
from gzpaper.tree import InputError

typst = pytest.importorskip("typst", reason="the report needs typst: install gzpaper[paper]")
SOURCE = (paper.root() / "paper/report.typ").read_text()
UNITS = "%|galax|epoch|minute|hour|seed|px|view|vote|volunteer|question|network|million|training|trial|fold|core"
TYPED = re.compile(rf"\d+[.,]\d+(?!\d*(?:pt|fr))|(?<![\w.-])(?!20[012]\d\b)\d{{3,}}\b|(?<![\w-])\d+\s*(?:{UNITS})")


def prose(text: str) -> str:
    "The text without comments, names, commands and the widths of figures."
    for code in (r"^\s*//.*$", r"\s//.*$", r"```.*?```", r"`[^`]*`", r'"[^"\n]*"', r"width: \d+%"):
        text = re.sub(code, "", text, flags=re.MULTILINE | re.DOTALL if "```" in code else re.MULTILINE)
    return text


@pytest.fixture
def stage(tmp_path, monkeypatch) -> Path:
    "What the report of the published results is compiled from."
    monkeypatch.setenv("GZPAPER_RUNS", str(tmp_path / "runs"))
    (tmp_path / "stage").mkdir()
    inputs = _stage_report(paper.published_profile(), tmp_path / "stage")
    (tmp_path / "stage/inputs.json").write_text(json.dumps(inputs))
    return tmp_path / "stage"


def made(stage: Path) -> bytes:
    "The PDF."
    return _compile(stage, json.loads((stage / "inputs.json").read_text()))


def told(stage: Path, label: str) -> list:
    "What the report says under a label that is not printed."
    inputs = json.loads((stage / "inputs.json").read_text())
    found = typst.query(str(stage / "report.typ"), f"<{label}>", root=str(stage), ignore_system_fonts=True, sys_inputs=inputs)
    return [element.get("value") for element in json.loads(found)]


def change(file: Path, edit):
    "Edit a JSON file."
    values = json.loads(file.read_text())
    edit(values)
    file.write_text(json.dumps(values))


def test_no_measured_number_is_typed():
    assert TYPED.findall(prose(SOURCE)) == []


@pytest.mark.parametrize("typed", [
    "an RMSE of 0.0882", "61,578 galaxies", "on 5500", "after 30 epochs", "$sigma = 0.04$", "saved 41% of", "3 seeds",
])
def test_a_typed_number_is_found(typed):
    assert TYPED.search(prose(f"{SOURCE}\nVGG7 and ResNet-50 have {typed} here."))


def test_no_semicolon_is_lost():
    "After a call or a condition's words, typst takes a semicolon for the end of the code: `\\;` is one of the text."
    assert "];" not in SOURCE
    for call in re.finditer(r"#[\w.-]+\(", SOURCE):
        end, depth = call.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(SOURCE[end], 0)
            end += 1
        assert SOURCE[end] != ";", SOURCE[call.start() : end + 1]


def test_every_quoted_number_has_a_source_and_is_used():
    quoted = read_yaml(paper.root() / "paper/quoted.yaml")
    keys = re.findall(r"^@\w+\{(\w+),", (paper.root() / "paper/references.bib").read_text(), re.MULTILINE)
    sources = {entry["source"] for name, entry in quoted.items() if name not in ("published", "brief")}
    assert sources | {entry["source"] for entry in quoted["published"]} <= {*keys, "computed"}
    assert [name for name in quoted if f'quoted("{name}"' not in SOURCE] == []


def test_the_package_compares_with_the_quoted_numbers():
    quoted = read_yaml(paper.root() / "paper/quoted.yaml")
    assert (min(LEADERBOARD.values()), CHALLENGE_MEAN) == (quoted["winner"]["value"], quoted["training_mean"]["value"])
    assert {quoted["third"]["value"], quoted["fourth"]["value"]} <= set(LEADERBOARD.values())


def test_every_reference_is_cited():
    keys = re.findall(r"^@\w+\{(\w+),", (paper.root() / "paper/references.bib").read_text(), re.MULTILINE)
    cited = {*re.findall(r"@(\w+)", SOURCE), *re.findall(r"cite\(<(\w+)>", SOURCE)}
    cited |= {entry["source"] for entry in read_yaml(paper.root() / "paper/quoted.yaml")["published"]}
    assert [key for key in keys if key not in cited] == []


def test_every_figure_and_table_is_spoken_of():
    shown = {f"{kind}:{name}" for kind, name in re.findall(r'\b(fig|tab)\("(\w+)"', SOURCE)}
    shown |= {f"{kind}:{name}" for kind, name in re.findall(r'\bshown\("(fig|tab)", "(\w+)"', SOURCE)}
    assert shown == set(re.findall(r"@((?:fig|tab):\w+)", SOURCE))


def test_the_same_numbers_give_the_same_bytes(stage):
    first = made(stage)
    assert first.startswith(b"%PDF") and b"CreationDate" not in first
    assert first == made(stage)
    change(stage / "numbers/03_vgg7.json", lambda n: n.update(rmse=0.1234))
    assert first != made(stage)


def test_the_published_report_is_of_the_published_numbers(stage):
    published = paper.root() / "paper/report.pdf"
    if not published.exists():
        pytest.skip("paper/report.pdf is not there yet: `make publish PROFILE=sample` writes it")
    assert published.read_bytes() == made(stage)


@pytest.mark.parametrize("lost, said", [
    ("numbers/03_vgg7.json", "numbers/03_vgg7.json"), ("numbers/03_vgg7.json:rmse", "numbers/03_vgg7.json has no rmse"),
    ("numbers/04_architectures.json:ladder", "numbers/04_architectures.json has no ladder"),
    ("tables/04_costs.csv", "tables/04_costs.csv"), ("tables/04_costs.csv:multiply_adds", "tables/04_costs.csv has no"),
    ("figures/04_compute.pdf", "figures/04_compute.pdf"), ("tables/05_heads.json", "tables/05_heads.json"),
    ("quoted.yaml", "quoted.yaml"),
])
def test_what_is_missing_is_named_in_one_line(stage, lost, said):
    name, _, key = lost.partition(":")
    if not key:
        (stage / name).unlink()
    elif name.endswith(".csv"):
        pd.read_csv(stage / name).drop(columns=key).to_csv(stage / name, index=False)
    else:
        change(stage / name, lambda values: values.pop(key))
    with pytest.raises(InputError) as error:
        made(stage)
    message = str(error.value)
    assert said in message and "gzpaper reproduce --profile" in message and "\n" not in message and str(stage) not in message


def test_a_mistake_in_the_text_is_placed(stage):
    (stage / "report.typ").write_text(SOURCE + "\n#nonsense(\n")
    with pytest.raises(InputError, match=r"correct report.typ:\d+$"):
        made(stage)


def test_nothing_lies_on_anything_else(stage):
    "No figure or table reaches into another one, or out of its page."
    places = pd.DataFrame(told(stage, "place"))
    bottom = places.y + places.height
    assert len(places) >= 15 and (bottom <= 29.7 / 2.54 * 72 - 40).all(), places[bottom > 29.7 / 2.54 * 72 - 40]
    for _, page in places.groupby("page"):
        for a in page.itertuples():
            for b in page.itertuples():
                beside = not (a.wide or b.wide) and (a.x < 290) != (b.x < 290)
                assert a.name == b.name or beside or a.y + a.height <= b.y or b.y + b.height <= a.y, (a, b)


def test_mock_galaxies_are_named_on_every_page(stage):
    assert told(stage, "mock") == []
    for file in stage.glob("numbers/*.json"):
        change(file, lambda numbers: numbers.update(mock=True))
    assert len(told(stage, "mock")) == told(stage, "pages")[0] >= 6


@pytest.mark.parametrize("name, other", [
    ("09_final", {"members": ["tuned"], "better": "tuned"}), ("09_final", {"members": ["default"]}),
    ("10_evaluation", {"parameters": "tuned"}),
    ("08_learning_curve", {"last_doubling_is": "lowers"}),
    ("10_evaluation", {"volunteers": None, "maps": False, "at_ceiling": ["odd", "bar"]}),
])
def test_the_text_has_words_for_other_outcomes(stage, name, other):
    before = made(stage)
    change(stage / f"numbers/{name}.json", lambda n: n.update(other))
    assert made(stage) != before


def test_sections_outside_of_the_chain_are_left_out(stage):
    change(stage / "inputs.json", lambda i: i.update(sections=" ".join(s for s in i["sections"].split() if s < "07")))
    assert made(stage).startswith(b"%PDF")
    assert max(place["name"] for place in told(stage, "place") if place["name"][0] == "0") < "07"


def test_report_command(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("GZPAPER_RUNS", str(tmp_path))
    done = cli("report", "--profile", paper.published_profile())
    assert done.code == 0 and (tmp_path / paper.published_profile() / "report.pdf").read_bytes().startswith(b"%PDF")
    cli("report", "--profile", "smoke").refused("smoke", "nothing to report", "gzpaper reproduce --profile smoke")
    monkeypatch.setitem(sys.modules, "typst", None)
    shutil.rmtree(tmp_path / paper.published_profile())
    cli("report", "--profile", paper.published_profile()).refused("typst", "pip install")
    assert not list(tmp_path.rglob("*report*"))


def test_check_without_the_galaxies_makes_the_report(tmp_path, monkeypatch, cli):
    done = cli("reproduce", "--check", "--data", tmp_path / "nowhere")
    assert done.code == 0 and "nothing was reproduced" in done.out, done
