# ruff: noqa: E501 - a template stays on its line
"""Chat templates: literal renderings, equality with Transformers where it is installed, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gristmill import ArgumentError, ChatTemplate, GGUFError, TemplateError
from slow_bpe import write_vocabulary

USER = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Das Wetter <dort> & "hier" 日本',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>\nadd them\n</think>\n\n4"},
    {"role": "user", "content": "And 'weather'?"},
    {
        "role": "assistant",
        "content": "<think>\nask\n</think>\n\nLet me see.",
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
        ],
    },
    {"role": "tool", "content": "sunny"},
    {"role": "tool", "content": "12 °C"},
    {"role": "assistant", "content": "<think>\nkept\n</think>\n\nFine."},
]


@pytest.fixture(scope="session")
def qwq(shared_data: Path) -> ChatTemplate:
    return ChatTemplate((shared_data / "QwQ-32B.chat_template.jinja").read_text(encoding="utf-8"))


def test_qwq_opens_the_reasoning(qwq: ChatTemplate) -> None:
    head = "<|im_start|>user\nHi<|im_end|>\n"
    assert qwq.render(USER, enable_thinking=True) == head + "<|im_start|>assistant\n<think>\n"
    assert qwq.render(USER, enable_thinking=False) == head + "<|im_start|>assistant\n<think>\n</think>"
    assert qwq.render(USER) == qwq.render(USER, enable_thinking=False)  # undefined is false
    assert qwq.render(USER, add_generation_prompt=False) == head


def test_qwq_drops_reasoning_from_history_and_wraps_tools(qwq: ChatTemplate) -> None:
    assert qwq.render(HISTORY, tools=[TOOL], add_generation_prompt=False) == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call one or more functions to assist with the user "
        "query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "weather", "description": "Das Wetter <dort> & \\"hier\\" 日本", '
        '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}\n</tools>\n\n'
        "For each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
        "<args-json-object>}\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\nAnd 'weather'?<|im_end|>\n"
        '<|im_start|>assistant\nLet me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n'
        "</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\n12 °C\n</tool_response>"
        "<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nkept\n</think>\n\nFine.<|im_end|>\n"
    )


def test_smollm2(smollm2_path: Path) -> None:
    assert ChatTemplate.from_gguf(smollm2_path).render(USER) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_deepseek_r1_distill(qwen7b_part_path: Path) -> None:
    template = ChatTemplate.from_gguf(qwen7b_part_path)
    assert template.render(HISTORY[:4]) == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>2+2?<｜Assistant｜>\n\n4<｜end▁of▁sentence｜>"
        "<｜User｜>And 'weather'?<｜Assistant｜>"
    )


RENDERED = {
    "{% for m in messages %}{{ m.role }}={{ m['content'] }};{% endfor %}": "user=Hi;",
    "{{ messages | tojson }}": '[{"role": "user", "content": "Hi"}]',
    "{{ {'ü': '<&>'} | tojson(indent=2) }}": '{\n  "ü": "<&>"\n}',
    "{{ messages|tojson(separators=(',', ':')) }}": '[{"role":"user","content":"Hi"}]',
    "{% generation %}{{ messages[0].content }}{% endgeneration %}!": "Hi!",
    "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 3 %}{% break %}{% endif %}{{ i }}"
    "{% endfor %}": "023",
    "  {% if true %}\n  x\n  {% endif %}\ny\n": "  x\ny",
    "{% set ns = namespace(n=none) %}{{ ns.n is none }}{% for m in [1, 2] %}{% set ns.n = m %}{% endfor %}{{ ns.n }}": "True2",
    "{% macro f(x, y='d') %}[{{ x }}{{ y }}{{ caller() if caller }}]{% endmacro %}{{ f(1) }}{% call f(2) %}c{% endcall %}": "[1d][2dc]",
    "{{ nothing }}|{{ nothing is defined }}|{{ nothing or 'x' }}|{{ tools is none }}|{{ documents is none }}": "|False|x|True|True",
    "{{ messages|map(attribute='role')|join('+') }}{{ messages|selectattr('role', 'equalto', 'x')|list }}": "user[]",
    "{{ 'a,b'.split(',')[1:] }}{{ 'abc'[::-1] }}{{ '%02d|%s' % (3, 'x') }}{{ '{}{k}'.format(1, k=2) }}": "['b']cba03|x12",
    "{{ 'x' * 3 }}{{ [1] + [2] }}{{ 2 ** 10 }}{{ 7 // 2 }}{{ 'a' ~ 1 ~ none }}{{ 1 in [1] }}": "xxx[1, 2]10243a1NoneTrue",
    "{% for k, v in messages[0].items() %}{{ k }}:{{ v }} {% endfor %}{{ messages[0].get('x', 'y') }}": "role:user content:Hi y",
    "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}": "123",
    "{% for g in [{'a': 1}, {'a': 2}, {'a': 1}]|groupby('a') %}{{ g.grouper }}x{{ g.list|length }} {% endfor %}": "1x2 2x1 ",
    "{{ ' a '|trim }}{{ 'ab'|upper }}{{ 'x\ny'|indent(2) }}{{ 'aXa'|replace('X', '-') }}{{ '<'|e }}": "aABx\n  ya-a&lt;",
    "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ extra.k[0] }}": "<B><E>True7",
    "{% set x %}a{{ 1 }}{% endset %}{{ x }}{% filter upper %}b{% endfilter %}{% with z = 2 %}{{ z }}{% endwith %}": "a1B2",
    "{% for m in messages %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem is defined }}"
    "{{ loop.cycle('p', 'q') }}{% endfor %}": "1TrueTrue1Falsep",
    "{{ strftime_now('%%') }}{{ raise_exception is defined }}{{ dict(a=1) }}{{ 3.0.is_integer() }}": "%True{'a': 1}True",
}


@pytest.mark.parametrize("source", RENDERED)
def test_what_templates_use(source: str) -> None:
    template = ChatTemplate(source, bos_token="<B>", eos_token="<E>")
    assert template.render(USER, extra={"k": (7,)}) == RENDERED[source]


def test_reasoning_is_found_under_its_names() -> None:
    template = ChatTemplate("{{ messages[0].reasoning_content }}/{{ messages[0].thinking }}")
    for name in ("reasoning_content", "thinking", "reasoning"):
        assert template.render([{"role": "assistant", "content": "", name: "why"}]) == "why/why"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\nb\n{% if x %}", "line 3: Unexpected end of template"),
        ("{{ 1 +\n\n}}", "line 3: "),
        ("\n{{ raise_exception('roles must\nalternate') }}", "line 2: roles must\\nalternate"),
        ("\n\n{{ messages[0].content.nope.more }}", "line 3: "),
        ("{{ 1 + 'a' }}", "line 1: unsupported operands for +: int and str"),
        ("{{ nothing.x }}", "line 1: 'nothing' is undefined"),
        ("{{ nothing() }}", "line 1: 'nothing' is undefined"),
        ("{{ 1 / 0 }}", "line 1: division by zero"),
        ("{{ 'x'|nofilter }}", "line 1: No filter named 'nofilter'."),
        ("{{ 1 is notest }}", "line 1: No test named 'notest'."),
        ("{% do 1 %}", "line 1: Encountered unknown tag 'do'."),
        ("{% include 'x' %}", "line 1: include is not supported"),
        ("{{ messages[0]['role'].nope | tojson }}", "line 1: "),
        ("{{ range }}", "line 1: a Function cannot be used as a value here"),
    ],
)
def test_errors_are_one_line_with_a_line_number(source: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render(USER)
    text = str(caught.value)
    assert text.startswith("chat template, " + message)
    assert "\n" not in text


@pytest.mark.parametrize(
    ("render", "message"),
    [
        (lambda t: t.render("text"), "messages: expected a list"),
        (lambda t: t.render(["text"]), "messages: expected a list"),
        (lambda t: t.render([{"role": "user", "content": b"x"}]), "messages[0].content is of type bytes"),
        (
            lambda t: t.render([{"role": "user", "content": object()}]),
            "messages[0].content is of type object",
        ),
        (lambda t: t.render(USER, tools="x"), "tools: expected a list"),
        (lambda t: t.render(USER, tools=[print]), "tools[0] is of type builtin_function_or_method"),
        (lambda t: t.render(USER, f=open), "f is of type"),
    ],
)
def test_only_plain_data_goes_in(render: Callable[[ChatTemplate], str], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        render(ChatTemplate("{{ messages }}"))
    assert str(caught.value).startswith(message)


def test_a_cycle_in_the_messages_is_an_error() -> None:
    loop: dict[str, Any] = {"role": "user"}
    loop["content"] = loop
    with pytest.raises(ArgumentError, match="nested too deeply"):
        ChatTemplate("{{ messages }}").render([loop])


def test_from_gguf(tmp_path: Path) -> None:
    path = write_vocabulary(
        tmp_path / "v.gguf", **{"tokenizer.chat_template": "{{ bos_token }}|{{ eos_token }}"}, bos_token_id=0
    )
    assert ChatTemplate.from_gguf(path).render([]) == "!|<|endoftext|>".replace(
        "!", ChatTemplate.from_gguf(path).bos_token
    )
    overridden = ChatTemplate.from_gguf(path, overrides={"tokenizer.chat_template": "x"})
    assert overridden.render([]) == "x"
    with pytest.raises(GGUFError, match="the file has no chat template"):
        ChatTemplate.from_gguf(write_vocabulary(tmp_path / "w.gguf"))


def test_templates_may_render_in_threads(qwq: ChatTemplate) -> None:
    from concurrent.futures import ThreadPoolExecutor

    want = qwq.render(HISTORY, tools=[TOOL])
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: qwq.render(HISTORY, tools=[TOOL]), range(64))) == {want}


def test_equal_to_transformers(qwq: ChatTemplate, smollm2_path: Path, qwen7b_part_path: Path) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    templates = [qwq, ChatTemplate.from_gguf(smollm2_path), ChatTemplate.from_gguf(qwen7b_part_path)]
    # generation tags etc. are in RENDERED; strftime_now and documents have no fixed text.
    templates += [ChatTemplate(source, "<B>", "<E>") for source in RENDERED if "a Function" not in source]
    chats = [USER, HISTORY[:2], HISTORY[1:5], HISTORY, [{"role": "user", "content": "x", "reasoning": "y"}]]
    for template in templates:
        for chat in chats:
            for tools in (None, [TOOL], []):
                for kwargs in ({}, {"enable_thinking": True}):
                    given = {"extra": {"k": [7]}, "add_generation_prompt": True, **kwargs}
                    (want,), _ = utils.render_jinja_template(
                        [chat],
                        tools=tools,
                        chat_template=template.source,
                        bos_token=template.bos_token,
                        eos_token=template.eos_token,
                        **given,
                    )
                    assert template.render(chat, tools=tools, **given) == want, template.source
