from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.specs import SpecError, canonical, convert, expand, nearest, parse, select

NAMES = ["dreg", "iwae", "iwae-stl", "sumo", "pyro-trace-elbo"]
fixed = settings(derandomize=True, deadline=None, max_examples=300)


@dataclass(frozen=True)
class Widget:
    size: int = 3
    scale: float = 0.5
    strict: bool = False
    mode: str = "plain"
    place: str = field(default="here", kw_only=True)

    name = "widget"


def read(text, kind=Widget):
    return kind(**convert(kind, parse(text)[1]))


def test_canonical_spells_out_every_parameter_in_order():
    assert canonical(Widget()) == "widget[size=3,scale=0.5,strict=false,mode=plain]"
    assert canonical(Widget(strict=True), leave_out=("size", "mode")) == "widget[scale=0.5,strict=true]"
    assert canonical(make_dataclass("Bare", [])()) == "Bare"


@pytest.mark.parametrize("text", ["widget", "widget[]", " widget [ scale = 5e-1 ]", "widget[mode=plain,size=3]"])
def test_equal_settings_have_equal_text(text):
    assert canonical(read(text)) == canonical(Widget())


@fixed
@given(st.builds(Widget, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans()))
def test_round_trip(widget):
    assert read(canonical(widget)) == widget


def test_parse():
    assert parse("name") == ("name", {})
    assert parse("a-1[x= 2 ,y=b=c,]") == ("a-1", {"x": "2", "y": "b=c"})
    assert parse("a[x=b[y=1,z=c[d=2]],w=3]") == ("a", {"x": "b[y=1,z=c[d=2]]", "w": "3"})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "cannot read ''"),
        ("[x=1]", "cannot read"),
        ("a[x=1", "write name or name[parameter=value,...]"),
        ("a]x=1[", "cannot read"),
        ("a[x]", "cannot read 'x'"),
        ("a[=1]", "write parameter=value"),
        ("a[x=]", "write parameter=value"),
        ("a[x=1,x=2]", "'x' is given twice"),
        ("a[x=b[y=1]", "write name or name[parameter=value,...]"),
        ("a[x=b[y=1]]]", "write name or name[parameter=value,...]"),
        ("a[x=1][y=2]", "write name or name[parameter=value,...]"),
    ],
)
def test_parse_errors_name_the_text(text, part):
    with pytest.raises(SpecError) as caught:
        parse(text)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@fixed
@given(st.one_of(st.text(), st.text(alphabet="ab[]=,! \n*1.", max_size=12)))
def test_reading_raises_nothing_but_a_spec_error(text):
    try:
        name, raw = parse(text)
        assert name and all(raw.values())
        convert(Widget, raw)
        expand(text, NAMES, "estimator")
    except SpecError:
        pass


@fixed
@given(st.lists(st.text(alphabet="!*?abdeiw[]=,-", max_size=8), max_size=4))
def test_selecting_raises_nothing_but_a_spec_error(patterns):
    try:
        assert select(patterns, NAMES, "estimator")
    except SpecError as wrong:
        assert "\n" not in str(wrong)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("widget[size=1.5]", "widget[size] takes a whole number, not '1.5'"),
        ("widget[size=" + "9" * 5000 + "]", "takes a whole number"),
        ("widget[scale=one]", "widget[scale] takes a finite number, not 'one'"),
        ("widget[scale=nan]", "takes a finite number"),
        ("widget[scale=-inf]", "takes a finite number"),
        ("widget[strict=1]", "widget[strict] takes true or false, not '1'"),
        ("widget[sice=1]", "no parameter 'sice'; did you mean 'size'?"),
        ("widget[place=there]", "no parameter 'place'"),
        ("widget[zzz=1]", "allowed: size, scale, strict, mode"),
    ],
)
def test_values_of_the_wrong_type_are_told(text, part):
    with pytest.raises(SpecError) as caught:
        read(text)
    assert part in str(caught.value)


def test_a_component_without_parameters_says_so():
    with pytest.raises(SpecError, match="has no parameter 'x'; it has none"):
        read("bare[x=1]", make_dataclass("Bare", []))


def test_annotations_that_are_types_are_understood():
    kind = make_dataclass(
        "Plain", [("size", int, 1), ("rate", float, 0.5), ("on", bool, False), ("k", int | None, None)]
    )
    made = read("Plain[size=2,rate=1e-3,on=TRUE]", kind)
    assert (made.size, made.rate, made.on, made.k) == (2, 1e-3, True, None)
    assert read("Plain[k=2]", kind).k == "2"


def test_nearest():
    assert nearest("iwea", NAMES) == "did you mean 'iwae'?"
    assert nearest("x", ["one", "two"]) == "allowed: one, two"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("iwae", ["iwae"]),
        ("iwae*", ["iwae", "iwae-stl"]),
        ("*", NAMES),
        (" sumo [cap=4] ", ["sumo[cap=4]"]),
        ("i*[x=1]", ["iwae[x=1]", "iwae-stl[x=1]"]),
        ("???o", ["sumo"]),
    ],
)
def test_globs(pattern, names):
    assert expand(pattern, NAMES, "estimator") == names


def test_what_fits_nothing_is_told_with_the_nearest():
    with pytest.raises(SpecError, match="no estimator 'dregg'; did you mean 'dreg'"):
        expand("dregg", NAMES, "estimator")
    with pytest.raises(SpecError, match="no estimator 'IWAE'"):
        expand("IWAE", NAMES, "estimator")


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["*", "!pyro-*"], NAMES[:4]),
        (["*", "!i*", "iwae"], ["dreg", "sumo", "pyro-trace-elbo", "iwae"]),
        (["sumo[cap=4]", "sumo", "!sumo"], None),
        (["sumo[cap=4]", "sumo", "!sumo[cap=4]"], ["sumo"]),
        (["dreg", "d*", "dreg"], ["dreg"]),
        (["!dreg"], None),
        ([], None),
    ],
)
def test_selection_in_order_without_repetition(patterns, names):
    if names is None:
        with pytest.raises(SpecError, match="leaves no estimator"):
            select(patterns, NAMES, "estimator")
    else:
        assert select(patterns, NAMES, "estimator") == names


def test_taking_away_what_is_not_there_is_told():
    with pytest.raises(SpecError, match="no estimator 'pyrro"):
        select(["*", "!pyrro-*"], NAMES, "estimator")
