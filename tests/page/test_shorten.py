"""Our scripts as they are served: shorter, and the same."""

import inspect
import json
import re
import subprocess
from dataclasses import fields

import pytest

from bgmiddleware import Job, Progress, Question, Step
from bgmiddleware._serving import assets, events, page, status, timed
from bgmiddleware._serving.estimates import Estimate
from bgmiddleware._serving.shorten import shortened
from tests.page.terminals import HERE, node_program


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (
            '  // says why\n\n  const url = "http://x";\n  go(url, {\n  b: 1,\n//\n  });\n',
            'let a="http://x";go(a,{b:1});',
        ),
        ("const one = 1;\nconst {two} = one;\nlet six;\nlet ten = 1;", "let a=1,{two:d}=a,b,c=1;"),
        ("const one = () => {\n};\nconst two = 2;", "let a=()=>{},b=2;"),
        ("{\na();\nwhile (b());\n}", "{a();while(b());}"),
        ("[\n1,\n2,\n];", "[1,2];"),
        ("x = a - -b + +c + d++ + ++e;", "x=a- -b+ +c+d++ + ++e;"),
        ("x = 'a = b' + \"it's , c\";", "x='a = b'+\"it's , c\";"),
        ("const one = 1; x = `one ${one} ${`${one} }`} one`;", "let a=1;x=`one ${a} ${`${a} }`} one`;"),
        ("x = a === 'b' && a !== '1' && a === 1;", "x=a=='b'&&a!=='1'&&a===1;"),
        ("x = / = [/] one/g; y = 4 / 2 / 1;", "x=/ = [/] one/g;y=4/2/1;"),
    ],
)
def test_what_says_nothing_is_left_out(text: str, short: str) -> None:
    assert shortened(text) == short


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (
            "function add(one, {two, three: four = two}) {\nreturn one.two;\n}",
            "function c(a,{two:b,three:d=b}){return a.two}",
        ),
        ("const list = [1];\nx = {list, list: list, other: {list}};", "let a=[1];x={list:a,list:a,other:{list:a}};"),
        ("class Line {\nwidth = 0;\nadd(width) {\nthis.width = width;\n}\n}", "class b{width=0;add(a){this.width=a}}"),
        ("for (const [name, {key}] of rows) x(name?.key, key);", "for(let[b,{key:a}]of rows)x(b?.key,a);"),
        ("try {\nx();\n} catch (error) {\ny(error);\n}", "try{x()}catch(a){y(a)}"),
        ("const f = async ({key}, ...rest) => (key ? rest : {...rest});", "let c=async({key:b},...a)=>(b?a:{...a});"),
        ("const far = (one = Infinity) => one;", "let b=(a=1/0)=>a;"),
    ],
)
def test_names_are_short_where_they_are_our_own(text: str, short: str) -> None:
    assert shortened(text) == short


def test_a_constant_has_a_short_name_too() -> None:
    assert shortened("x = Math.min(1, Math.PI);", "Math") == "let a=Math;x=a.min(1,a.PI);"


def test_our_own_properties_have_short_names_that_no_other_has() -> None:
    text = "const mine = {first: 1, a: 2};\nconst {first, a} = mine;\nx(mine.first, y?.first, first, `first`, 'first');"
    assert shortened(text, properties=["first", "unused"]) == (
        "let a={b:1,a:2},{b:b,a:c}=a;x(a.b,y?.b,b,`first`,'first');"
    )


def test_no_name_of_what_the_server_gives_is_shortened() -> None:
    """A name of a document, of a class whose values are in one, or of a place in our words."""
    given = {field.name for kind in (Progress, Question, Step) for field in fields(kind)} | set(Job._fields)
    given |= set(Estimate._fields)
    given |= set(re.findall(r"{(\w+)}", json.dumps(assets.words("en"))))
    given |= set(re.findall(r'"(\w+)":', "".join(map(inspect.getsource, (status, timed, events, page)))))
    assert {"runs", "low", "started_at", "estimate"} <= given
    assert given & set(assets._PROPERTIES) == set()


def test_the_script_of_the_page_is_still_one() -> None:
    done = subprocess.run(
        [node_program(), "--check", "-"], cwd=HERE, input=assets.script(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-300:]


def test_the_terminal_is_still_the_same() -> None:
    text = "one\r\n\x1b[31mtwo\x1b[0m\n" + "50%\r60%\n" * 3
    ask = f"const lines = []; const s = Terminal.createScreen((line) => lines.push(line)); s.write({text!r});"
    ask += "console.log(s.lines.map((line) => line.text).join());"
    terminal = shortened(assets.static("terminal.js"))
    name = terminal.removeprefix("let ").partition("=")[0]
    done = subprocess.run(
        [node_program()], input=f"{terminal}const Terminal = {name};{ask}", capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "one,two,60%,60%,60%\n", done.stderr[-300:]
