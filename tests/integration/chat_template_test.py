"""Our part of Jinja against Debian's python3-jinja2: the same bytes, or both refuse.

Own templates cover what is in the part; with folders of published models as arguments (tests/web/run.sh fetches some), their chat templates
are compared over a set of conversations. Python's side is set up as published templates expect it: trim_blocks, lstrip_blocks, tojson as
json.dumps without escapes, raise_exception.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

try:
    import jinja2
    import jinja2.sandbox
except ImportError:
    if sys.executable != "/usr/bin/python3" and Path("/usr/bin/python3").exists():
        os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])
    print("skipped: python3-jinja2 is not installed (./test installs it)")
    sys.exit(77)

DRIVER = os.environ["OSCARKV_CHAT_TEMPLATE_DRIVER"]


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    env.globals["raise_exception"] = raise_exception
    return env


def python(template, variables):
    try:
        return environment().from_string(template).render(**variables), None
    except Exception as error:  # whatever Python makes of it
        return None, f"{type(error).__name__}: {error}"


VARIABLES = {
    "a": 7, "b": -3, "x": 2.5, "s": "  Grüße, Welt\u3000\n", "e": "", "t": True, "n": None, "list": [3, 1, 2], "words": ["a", "b", "ab"],
    "d": {"z": 1, "a": [True, None, 1.0, "\u2028\"\\/\x07é"], "k": {"y": {}, "x": []}},
    "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U1\n"}, {"role": "assistant", "content": "A", "tool": "f"},
                 {"role": "user", "content": "<é>"}],
}

# One expression each.
EXPRESSIONS = r"""
a + b * 2 - 1; a // 2; b // 2; a % 3; b % 3; -a; a / 2; x * 2; 7 // -2; 7 % -2; x // 2; 1 - -1; 'a' ~ 1 ~ none; 1 + 2 ~ 3; 2 * 3 ~ 4
a == 7.0; t == 1; n == none; 'a' < 'b'; a >= 7; a != b; 'W' in s; 'q' not in s; 'z' in d; 3 in list; 'u' in nothing
t and e; e or 'o'; not e; not a == 7; a if e else b; (a if e) is defined; 'y' if nothing else 'n'; e or n or 'last'; 1 and 2 and 0
s.strip(); s|trim; s.lstrip(); s.rstrip('\n'); s.strip(' \n'); 'xxaxx'.strip('x'); 'éaé'.lstrip('é'); s.split(',')|length; 'a,b,,c'.split(',')[-1]; 'ab'.split('b')[0]
s.startswith('  G'); s.endswith('x'); 'aXbX'.replace('X', '--'); s|length; list|length; d|length; 'é'|length; words|join; words|join('-'); '-'.join(words)
list[0]; list[-1]; list[5] is defined; list[1:]|tojson; list[:-1]|tojson; list[::-1]|tojson; list[-2:]|tojson; 'Grüße'[1:-1]; 'Grüße'[2]; 'abc'[5:]; list[10:]|tojson; list[-10:2]|tojson
list[2:0:-1]|tojson; list[:1:-1]|tojson; [][::-1]|tojson; 'a'[0:0]; words[a % 3]; messages[0]['role']; messages[1].content; d.k.x|tojson; d['a'][3]
d|tojson; d|tojson(indent=4); d|tojson(indent=0); list|tojson(indent=2); []|tojson(indent=2); {}|tojson(indent=2); 'é"\\\n\t\x01'|tojson; 1e3|tojson; 0.1|tojson; 100000000000000000000.0|tojson; 0.00001|tojson; n|tojson; t|tojson
x; 1.0; 0.1; 1500000.0; 0.00001; t; n; nothing; 12345678901234567; s is string; a is number; x is number; t is number; d is mapping; list is iterable; s is iterable; a is iterable; list is sequence; nothing is undefined; nothing is defined; n is none
t is true; a is true; e is false; a is odd; a is even; a is integer; t is integer; x is float; t is boolean; a is equalto 7; a is eq(7); a is ne 7; 1 is in list; 1 is not in list; a is not none; not a is none
d.get('q') is none; d.get('z', 5); d.get('q', 5); d.items()|list|length; d.keys()|list|tojson; d.values()|list|length; nothing|default('x'); e|default('x'); e|default('x', true); e|d('y', boolean=true); n|default('x')
list|first; list|last; []|first is defined; list|list|tojson; 'abc'|list|tojson; d|list|tojson; messages|selectattr('role', 'equalto', 'user')|list|length; messages|rejectattr('role', 'equalto', 'user')|list|length
messages|selectattr('tool')|list|length; messages|selectattr('tool', 'undefined')|list|length; messages|selectattr('tool', 'defined')|map(attribute='tool')|join(','); messages|map(attribute='role')|join('/')
range(3)|list|tojson; range(1, 3)|list|tojson; range(5, 0, -2)|list|tojson; namespace(a=1).a; dict(a=1)|tojson; {'a': 1, 'b': [2]}|tojson; {'a': 1, 'a': 2}|tojson; (1, 2)|list|tojson; 'a' 'b'; "it's"; 'it\'s "q"'; '\u00e9\x41\n\\d\d'
'12'|int + 1; 'q'|int; 3.9|int; a|string + 'x'; 'a<b'|safe; '5' + 5; n + 'a'; s + n; nothing + 'a'; nothing.x; n.x; a.x; d.nothing; d.nothing.x; list.x; s.x; messages[9].role; list['a']; n|length; a|length; 1 / 0; 1 // 0; a < 'b'; list + [4] | length
(list + [4])|length; 5 in 5; 'a' in n; 1 in 'a1'; s.nope; raise_exception('no: ' + s); range(2)[1]; -x; - a|string; not t or t; a == 7 and b == -3; a if t else b if e else 3; (list|first) + (list|last); [1, 2,] | length; '%s' | length
""".replace("\n", ";").split(";")

TEMPLATES = [
    "plain\n", "plain\n\n", "a\r\nb\r\n", "{# c #}x", "x {#- c -#} y", "a\n  {# c #}\nb\n", "{", "{{ '}}' }}", "{{ {'a': {}}|tojson }}", "{ { }",
    "{% if t %}\n  yes\n{% else %}\n  no\n{% endif %}\nend\n", "  {% if t %}  x  {% endif %}  \n  y", "  {%- if t -%}  x  {%- endif -%}  \n  y",
    "  {%+ if t %}\nx\n  {%+ endif +%}\ny", "{{ a }}\n{{ b }}\n", "{{- a -}}\n  z", " x {{- a }} y", "\n\n{% if t %}\n\nx{% endif %}\n\n",
    "{% if e %}1{% elif n %}2{% elif a %}3{% else %}4{% endif %}", "{% for i in list %}{{ i }}{% if not loop.last %},{% endif %}{% endfor %}",
    "{% for m in messages %}\n{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }} {{ loop.first }} {{ loop.last }} {{ loop.length }}\n{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}>{{ loop.nextitem.role if not loop.last }};{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v|tojson }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}", "{% for c in 'aé' %}[{{ c }}]{% endfor %}",
    "{% for i in list if i > 1 %}{{ i }}{{ loop.index }}{% else %}none{% endfor %}", "{% for i in list if i > 9 %}{{ i }}{% else %}none{% endfor %}",
    "{% for i in nothing %}x{% else %}none{% endfor %}", "{% for i in n %}x{% endfor %}", "{% for i in 5 %}x{% endfor %}", "{% for a, b in list %}x{% endfor %}",
    "{% set y = 1 %}{% for i in list %}{% set y = i %}{{ y }}{% endfor %}{{ y }}", "{% if t %}{% set y = 5 %}{% endif %}{{ y }}",
    "{% set ns = namespace(n=0, l=[]) %}{% for i in list %}{% set ns.n = ns.n + i %}{% set ns.l = ns.l + [i] %}{% endfor %}{{ ns.n }}{{ ns.l|tojson }}",
    "{% set y %}\n  a{{ a }}\n{% endset %}[{{ y }}]", "{% set y = 1, 2 %}{{ y|list|tojson }}", "{% for i in list %}{% for j in words %}{{ loop.index }}{{ i }}{{ j }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% for m in messages[::-1] %}{% set i = (messages|length - 1) - loop.index0 %}{{ i }}{{ m.role }}{% endfor %}",
    "{%- for message in messages %}\n    {%- if message.role == 'user' %}\n        {{- '<u>' + message.content + '</u>' }}\n    {%- elif message['role'] == 'system' %}\n        {{- message.content }}\n    {%- endif %}\n{%- endfor %}\n",
    "{% if messages[0]['role'] == 'system' %}{% set sys = messages[0]['content'] %}{% set rest = messages[1:] %}{% endif %}{{ sys }}{{ rest|length }}",
    "{{ raise_exception('stop') }}", "{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools is none }}", "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}x{% endif %}{% endfor %}",
    "{%- set a = 1 -%}\n\n  {{ a }}\n{%- set a = 2 %}\n\n{{ a }}", "{{ a }}{% if t %}\n{% endif %}\n{% if t %}\n{% endif %}", "\t {% if t %}\tx{% endif %}\n", "x\n\t{# c #}\t\ny",
]

# Where we refuse and Jinja does not, with the words that must be in the refusal.
OUTSIDE = {
    "a\n{% macro f() %}{% endmacro %}": 'line 2: the tag "macro"', "{% include 'x' %}": '"include"', "{{ s|upper }}": 'the filter "upper"', "\n\n{{ s.title() }}": 'line 3: the method "title"',
    "{{ a is divisibleby 3 }}": 'the test "divisibleby"', "{{ lipsum() }}": 'the function "lipsum"', "{{ 2 ** 3 }}": "the operator **", "{{ 1 < 2 < 3 }}": "a chain of comparisons",
    "{% for i in list recursive %}{% endfor %}": "a recursive loop", "{{ d }}": "a dict cannot be printed", "{{ list }}": "a list cannot be printed", "{% set a, b = 1, 2 %}": "several names",
    "{{ s.split() }}": "split at white space", "{{ list[::2] }}": "a step of 2", "{% raw %}{% endraw %}": '"raw"', "{% filter trim %}x{% endfilter %}": '"filter"', "{{ (s.strip)() }}": "calling the result",
    "{% for i in list %}{% break %}{% endfor %}": '"break"', "{{ 12345678901234567890 }}": "beyond 64 bits", "{% generation %}{% endgeneration %}": '"generation"',
}
# Broken for both.
BROKEN = ["{{ a", "{% if a %}", "{% endif %}", "{{ }}", "{{ a b }}", "{{ (a }}", "{{ a) }}", "{# a", "{% if %}{% endif %}", "{{ 'a }}", "{{ a | }}", "{{ a.}}", "{{ a[ }}", "{% for in list %}{% endfor %}", "{% 5 %}", "{{ ? }}",
          "{% set %}", "{% else %}", "{{ '\\x4' }}", "{{ [1, }}", "{{ {1 2} }}", "{% if a %}{% endfor %}"]

CHATS = [
    {"messages": [{"role": "user", "content": "Hello"}]},
    {"messages": [{"role": "system", "content": "Be  brief.\n"}, {"role": "user", "content": " Grüße 你好 \n"}, {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "\"Bye\"\\"}]},
    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4"}, {"role": "user", "content": "sure?"}]},
    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", "reasoning_content": "\nadd\n"}]},
    {"messages": [{"role": "user", "content": "x"}], "enable_thinking": False},
    {"messages": [{"role": "user", "content": "x"}], "enable_thinking": True, "add_generation_prompt": False},
    {"messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "", "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "w", "arguments": {"city": "Zürich", "days": 2, "f": 0.5, "deep": {"b": [1, None, True]}}}}]},
        {"role": "tool", "content": "{\"t\": 3}", "tool_call_id": "abcdefghi"}, {"role": "tool", "content": "more", "tool_call_id": "abcdefghi"}, {"role": "assistant", "content": "3 degrees"}]},
    {"messages": [{"role": "user", "content": "Weather?"}], "tools": [
        {"type": "function", "function": {"name": "w", "description": "The \"weather\" in <city>", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}},
        {"type": "function", "function": {"name": "v", "description": "é"}}]},
    {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Let me see.", "tool_calls": [
        {"id": "abcdefghi", "function": {"name": "w", "arguments": "{\"city\": 1}"}}, {"id": "123456789", "function": {"name": "v", "arguments": {}}}]},
        {"role": "tool", "content": "c", "tool_call_id": "abcdefghi"}, {"role": "user", "content": "<tool_response>x</tool_response>"}], "tools": [{"type": "function", "function": {"name": "w"}}]},
    {"messages": [{"role": "assistant", "content": "first"}]}, {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "system", "content": "late"}, {"role": "user", "content": "c"}]},
    {"messages": [{"role": "tool", "content": "x", "tool_call_id": "short"}]}, {"messages": [{"role": "critic", "content": "x"}]}, {"messages": []},
    {"messages": [{"role": "user", "content": None}]}, {"messages": [{"role": "user"}]}, {"messages": [{"role": "user", "content": "x" * 5000}] * 3},
]


def published(folder):
    """(name, template, special tokens) of a model folder."""
    config = json.loads(Path(folder, "tokenizer_config.json").read_text())
    file = Path(folder, "chat_template.jinja")
    template = file.read_text() if file.exists() else config["chat_template"]
    if isinstance(template, list):
        template = next(t["template"] for t in template if t["name"] == "default")
    text = {k: v["content"] if isinstance(v, dict) else v for k, v in config.items() if k in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return template, {k: v for k, v in text.items() if isinstance(v, str)}


def main(folders):
    jobs = [("{{ " + e.strip() + " }}", VARIABLES, None) for e in EXPRESSIONS if e.strip()]
    jobs += [(t, VARIABLES, None) for t in TEMPLATES] + [(t, VARIABLES, says) for t, says in OUTSIDE.items()]
    jobs += [(t, VARIABLES, "line ") for t in BROKEN]
    for folder in folders:
        template, tokens = published(folder)
        for chat in CHATS:
            jobs.append((template, {"add_generation_prompt": True, **tokens, **chat}, None))
    requests = "".join(json.dumps({"template": t, "variables": v}) + "\n" for t, v, _ in jobs)
    answers = subprocess.run([DRIVER], input=requests, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    assert len(answers) == len(jobs), (len(answers), len(jobs))
    failures = rendered = 0
    for (template, variables, says), line in zip(jobs, answers):
        answer = json.loads(line)
        if says is not None:
            good = says in answer.get("error", "")
            if template in BROKEN:
                good = good and python(template, variables)[0] is None
            expected = f"a refusal with {says!r}"
        else:
            expected, error = python(template, variables)
            good = answer.get("text") == expected if error is None else "error" in answer
            rendered += error is None
            expected = expected if error is None else error
        if not good:
            failures += 1
            print(f"--- {template[:300]!r} {json.dumps(variables)[:300] if variables is not VARIABLES else ''}\n  expected {expected!r}\n  got      {answer!r}")
    print(f"{len(jobs)} templates, {rendered} rendered alike, {failures} failures ({len(folders)} published ones)")
    return 1 if failures or rendered < 200 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
