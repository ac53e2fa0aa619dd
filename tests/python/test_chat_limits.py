# ruff: noqa: E501 - a template stays on its line
"""Templates that try to hang, to eat the memory or to get out."""

from __future__ import annotations

import resource
import sys
import time
from bisect import bisect_left

import pytest
from gristmill import ChatTemplate, TemplateError
from gristmill.templates.meter import Limits

USER = [{"role": "user", "content": "Hi"}]
DOUBLE = "{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
TREE = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
PAIRS = "{% set ns = namespace(x=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
DEEP = "{% set ns = namespace(x=[1]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}"
BIG = "{% set big = 'a' * 1000000 %}"

ENDLESS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
    "{% set r = range(100000) %}{% for i in r %}{% for j in r %}{% for k in r %}{% endfor %}{% endfor %}{% endfor %}",
    "{% set r = range(100000) %}{% for i in r %}{% for j in r if false %}{% endfor %}{% endfor %}",
    "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% for i in [1] recursive %}{% for j in range(100) %}{{ loop(range(100)) }}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f() %}{% for i in range(1000) %}{{ f() }}{% endfor %}{% endmacro %}{{ f() }}",
    "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
    "{{ 9 ** 9999999 }}",
    "{{ 2 ** -99999999999 }}",
    "{{ 5|round(-1000000000) }}",
    "{{ 5|round(1000000000, 'ceil') }}",
    "{{ ('9' * 1000000)|int }}",
    "{% for i in range(100000) %}{{ [3, 2, 1]|sort|join(',')|replace('1', '2')|upper }}{% endfor %}",
    BIG + "{% for i in range(100000) %}{% if big ~ 'b' == big ~ 'c' %}{% endif %}{% endfor %}",
    BIG + "{{ big.rsplit('ab' + 'a' * 500000) }}",
    BIG + "{{ big.rfind('ab' + 'a' * 500000) }}",
    BIG + "{{ big.strip('b' * 1000000 + 'a') }}",
    BIG + "{{ big|trim('b' * 1000000 + 'a') }}",
    "{% set l = ['a' * 1000000, 'a' * 1000000 ~ 'b'] * 100000 %}{{ l|sort|length }}",
    "{% set l = ['a' * 1000000, 'a' * 1000000 ~ 'b'] * 100000 %}{{ ('a' * 1000001) in l }}",
    "{% for i in range(1000) %}{{ ('a' * 1000000)|reject|list }}{% endfor %}",
    "{{ ([[1] * 1000] * 100000)|sum(start=[])|length }}",
    TREE + "{{ ns.x == ns.y }}",
    TREE + "{{ ns.x in [ns.y] }}",
    TREE + "{{ [ns.y].index(ns.x) }}",
    TREE + "{{ ns.x is eq ns.y }}",
    PAIRS + "{{ {ns.x: 1} }}",
    PAIRS + "{{ {}[ns.x] }}",
    PAIRS + "{{ {}.get(ns.x) }}",
    PAIRS + "{{ [ns.x]|unique|list }}",
    PAIRS + "{{ dict([(ns.x, 1)]) }}",
]
HUGE = [
    "{{ 'x' * 10**9 }}",
    "{{ [0] * 10**9 }}",
    "{% set ns = namespace(x='ab') %}" + DOUBLE,
    "{% set ns = namespace(x=[1]) %}" + DOUBLE,
    "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%.1000000000f' % 1.5 }}",
    "{{ '%1000000000d' is odd }}",
    "{{ '%1000000000d' is divisibleby(3) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{x:>1000000000}'.format_map({'x': 'y'}) }}",
    "{{ 'a'|center(1000000000) }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ '7'.zfill(1000000000) }}",
    "{{ '\t'.expandtabs(1000000000) }}",
    "{{ 'a'|indent(1000000000) }}",
    "{{ ('a\n' * 100000)|indent(100000) }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 1000000)|replace('', 'b' * 1000) }}",
    "{{ range(100000)|join('y' * 100000) }}",
    "{{ ('y' * 100000).join(range(100000)|map('string')) }}",
    "{{ range(100000)|map('string')|map('center', 1000)|join }}",
    "{{ [1]|batch(1000000000, 0)|list }}",
    "{{ [1]|slice(1000000000)|list }}",
    "{{ [1]|tojson(indent=1000000000) }}",
    "{{ [1, 2]|tojson(separators=('x' * 1000000, 'y')) }}",
    "{{ ('ab\n' * 20000000).splitlines()|length }}",
    BIG + "{% for i in range(100000) %}{{ big }}{% endfor %}",
    "{% set x %}{% for i in range(100000) %}" + "z" * 50000 + "{% endfor %}{% endset %}{{ x|length }}",
    "{% macro m() %}{% for i in range(100000) %}"
    + "z" * 50000
    + "{% endfor %}{% endmacro %}{{ m()|length }}",
    "{% filter length %}{% for i in range(100000) %}" + "z" * 50000 + "{% endfor %}{% endfilter %}",
    BIG
    + "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + [big[1:]] %}{% endfor %}",
    "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l, ["
    + "1," * 4000
    + "]] %}{% endfor %}",
    "{% set ns = namespace(l=1) %}{% for i in range(99999) %}{% set ns.l = (ns.l, ("
    + "1," * 4000
    + ")) %}{% endfor %}",
    "{% set ns = namespace(s='é') %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s]|string %}{% endfor %}",
    "{% set ns = namespace(d={}) %}{% for i in range(40) %}{% set ns.d = dict(ns.d, **{'k%d' % i: ns.d}) %}{% endfor %}{{ ns.d }}",
    TREE + "{{ ns.x }}",
    TREE + "{{ ns.x|string }}",
    TREE + "{{ ns.x|upper }}",
    TREE + "{{ ns.x|tojson }}",
    TREE + "{{ '%s' % ns.x }}",
    TREE + "{{ '{}'.format(ns.x) }}",
    TREE + "{{ [ns.x]|join }}",
    DEEP + "{{ ns.x }}",
    DEEP + "{{ ns.x|tojson }}",
    DEEP + "{{ ns.x == [ns.x] }}",
]
OVERSIZED = [
    "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "{{ " + "[" * 500 + "]" * 500 + " }}",
    "{{ " + "not " * 2000 + "1 }}",
    "{{ 1" + "+1" * 20000 + " }}",
    "{{ 'a'|upper" + "|upper" * 7000 + " }}",
    "{{ a" + ".b" * 20000 + " }}",
    "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "{% for i in [1] %}" * 50 + "{% endfor %}" * 50,
    "{% if a %}" + "{% elif b %}" * 5000 + "{% endif %}",
    "{{a}}" * 12000,
    "{{ " + "9" * 60000 + " }}",
    "{#" * 30000,
    "{{" * 30000,
    "{% if x " + " " * 60000,
    "x" * 70000,
]
OUTSIDE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'].__mro__ }}",
    "{{ (''|attr('__class__')).__mro__ }}",
    "{{ ''.__class__ }}",
    "{{ messages.__class__ }}",
    "{{ messages[0].__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ lipsum() }}",
    "{{ joiner.run.__globals__ }}",
    "{{ raise_exception.run }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace().__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ ''.join.receiver }}",
    "{{ ''.format.__self__.__class__ }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{x[__class__]}'.format(x='') }}",
    "{{ '{0.format.__globals__}'.format('') }}",
    "{{ '{x.__init__.__globals__}'.format_map({'x': 1}) }}",
    "{{ '%(__class__)s' % messages }}",
    "{{ [1]|map(attribute='__class__')|map('attr', '__mro__')|list|string|attr('x').y }}",
    "{{ dict.fromkeys([1]) }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ range.__init__.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{% for x in [1] %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "{{ (messages|map('upper')).gi_frame.f_globals }}",
    "{{ 'x'.encode().decode() }}",
    "{{ 'x'.translate({120: 'y' * 1000}) }}",
    "{% set ns = namespace(__class__=1) %}{{ ns.__class__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{% block a %}{% endblock %}",
    "{% autoescape true %}{% endautoescape %}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ open('/etc/passwd').read() }}",
    "{{ namespace }}{{ range }}",
]


def refuse(source: str) -> str:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render(USER)
    text = str(caught.value)
    assert text.startswith("chat template")
    assert "\n" not in text
    assert len(text) < 700
    return text


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@pytest.mark.parametrize("source", [*ENDLESS, *HUGE, *OVERSIZED])
def test_limits_stop_it_soon_and_in_little_memory(source: str) -> None:
    before, start = peak_bytes(), time.process_time()
    refuse(source) if source != OVERSIZED[9] else None
    assert time.process_time() - start < 8
    assert peak_bytes() - before < 300 << 20


@pytest.mark.parametrize("source", OUTSIDE)
def test_nothing_outside_is_reached(source: str) -> None:
    refuse(source)


def test_messages_are_copies() -> None:
    messages = [{"role": "user", "content": ["a"]}]
    with pytest.raises(TemplateError):
        ChatTemplate("{% set _ = messages[0].content.append(1) %}").render(messages)
    assert messages == [{"role": "user", "content": ["a"]}]


def test_each_limit_says_its_name() -> None:
    loop = "{% for i in range(1000) %}{{ 'x' * 1000 }}{% endfor %}"
    for limits, message in (
        (Limits(steps=100), "exceeds the limit of 100 steps"),
        (Limits(seconds=0), "exceeds the limit of 0 seconds"),
        (Limits(memory=1 << 16), "exceeds the limit of 0 MiB for values"),
        (Limits(output=5000), "the output exceeds 5000 characters"),
        (Limits(source=10), "54 characters, the limit is 10"),
        (Limits(nodes=3), "the template is too large"),
    ):
        with pytest.raises(TemplateError, match=message):
            ChatTemplate(loop, limits=limits).render(USER)


def test_steps_do_not_depend_on_the_machine() -> None:
    source = "{% for i in range(1000) %}{{ i }}{% endfor %}"

    def runs(steps: int) -> bool:
        try:
            ChatTemplate(source, limits=Limits(steps=steps)).render(USER)
        except TemplateError:
            return False
        return True

    enough = bisect_left(range(1000, 9000), True, key=runs) + 1000
    assert all(runs(enough) and not runs(enough - 1) for _ in range(3))


def test_a_long_chat_is_within_the_limits() -> None:
    """4000 messages of 2000 characters, a tool schema, and a template that splits each message."""
    source = (
        "{%- for m in messages %}{%- set c = m.content.split('</think>')[-1].lstrip('\\n') %}"
        "{{- '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>' + '\\n' }}{%- endfor %}{{ tools|tojson }}"
    )
    messages = [{"role": "user", "content": "<think>x</think>\n" + "word " * 400}] * 4000
    start = time.process_time()
    text = ChatTemplate(source).render(messages, tools=[{"name": "f", "parameters": {"x": list(range(100))}}])
    assert len(text) > 8_000_000
    assert time.process_time() - start < 4
