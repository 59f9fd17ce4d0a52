"""Small template programs for template_parity.py: each must print the same here and in python jinja2, or fail in both.
V holds the variables they see."""

V = {
    "s": "Hello, World", "u": "Grüße, 世界 😀 Ωß", "e": "", "ws": "  \t pad \n\u00a0", "n": 42, "z": 0, "neg": -7, "f": 2.5,
    "t": True, "no": False, "nil": None, "l": [3, 1, 2], "el": [], "ls": ["b", "A", "c", "a"], "d": {"a": 1, "b": {"c": [10, 20]}, "items": 5},
    "ed": {}, "m": [{"role": "user", "content": "hi", "n": 2}, {"role": "assistant", "content": "yo", "n": 1}, {"role": "User", "n": 3}],
    "q": "it's \"x\" & <b>", "lines": "one\ntwo\r\nthree\n\nfour", "csv": "a,b,,c", "tag": "<think>\nabc\n</think>\n\nrest", "ctl": "a\u0001\u007f\u0085b\u2028c",
}

EXPRESSIONS = r"""
1 + 2 * 3
(1 + 2) * 3
7 // 2
-7 // 2
7 % 3
-7 % 3
7 % -3
7.5 % 2
-7.5 % 2
7 / 2
6 / 2
1 / 0
1 // 0
1 % 0
1.0 / 0
2 ** 10
2 ** -1
2 ** 0.5
2 ** 3 ** 2
-2 ** 2
0 ** 0
0 ** -1
1e3
1e16
1e15
123456789012345678.0
0.1 + 0.2
1e-5
0.0001
1.5e300 * 1e10
1_000 + 0x1F + 0b11 + 0o17
5 - -3
+n
-f
-s
- t
not t
not not e
1 < 2 < 3
1 < 3 < 2
1 == 1.0
1 == true
'a' < 'b'
'a' < 1
none < 1
[1, 2] < [1, 3]
(1, 2) == (1, 2)
[1] == (1,)
{'a': 1} == {'a': 1.0}
none == none
none == false
x == y
x == none
x != none
'l' in s
'zz' not in s
1 in l
'a' in d
'z' in d
1 in s
l in d
'a' in x
1 in n
2 in (1, 2)
t and n
z or 'd'
e or nil or 'last'
t and z
n if t else s
n if no else s
n if no
(n if no) is defined
'a' if no else 'b' if no else 'c'
s ~ n ~ nil ~ t ~ f
s + 1
1 + s
s + s
s * 2
2 * s
s * -1
l * 2
l + l
l + (1,)
(1,) + (2,)
s - 1
nil + 1
s % 1
'%s-%d' % ('a', 3)
'%5.2f|%-5s|%05d' % (1.234, 'ab', 42)
'%s' % l
'%s' % d
'%r' % s
'%x %X %o' % (255, 255, 8)
'%%' % ()
'%(a)s' % d
'%d' % s
'%s %s' % (1,)
'%s' % (1, 2)
s[0]
s[-1]
s[100]
s[100] is defined
u[0:3]
u[-3:]
u[::-1]
s[::2]
s[1:8:3]
s[8:1:-3]
s[:]
s[5:2]
s[-100:100]
s[1:2:0]
l[0]
l[-1]
l[3]
l[1:]
l[:-1]
l[::-1]
l[:1]
l['x']
l[0.5]
d['a']
d.a
d['b']['c'][1]
d.b.c.1
d.b.c[0]
d.zz
d.zz.y
d['zz']
d[1:2]
nil[1:2]
n[0]
n.foo
nil.foo
nil.foo.bar
x
x.y
x['y']
x[0]
x()
s()
d['items']
d.items()
d.keys()
d.values()
d.items()|list
d.get('a')
d.get('zz')
d.get('zz', 5)
d.get(l)
d.get()
d.copy()
d.update({})
d.pop('a')
l.append(1)
l.append is defined
l.pop()
l.index(1)
l.index(9)
l.count(1)
s.upper()
s.lower()
u.upper()
u.lower()
u.title()
'hello wOrld-foo_bar x1y'.title()
"they're bill's".title()
'hELLO'.capitalize()
'ǆabc'.capitalize()
ws.strip()
ws.lstrip()
ws.rstrip()
'xxabcxx'.strip('x')
'abc'.strip('cab')
'xyabcyx'.lstrip('xy')
'xyabcyx'.rstrip('xy')
s.strip(1)
s.strip(none)
s.split()
s.split(',')
s.split(', ')
csv.split(',')
csv.split(',', 1)
csv.split(',', -1)
csv.split(',', 0)
csv.split(sep=',', maxsplit=2)
csv.rsplit(',', 1)
' a  b  c '.split()
' a  b  c '.split(none, 1)
' a  b  c '.split(maxsplit=1)
' a  b  c '.rsplit(none, 1)
''.split()
''.split(',')
s.split('')
tag.split('</think>')[-1].lstrip('\n')
tag.split('</think>')[0].split('<think>')[-1].strip('\n')
lines.splitlines()
lines.splitlines(true)
''.splitlines()
s.startswith('Hello')
s.startswith(('x', 'He'))
s.startswith('World', 7)
s.endswith('World')
s.endswith(('a', 'd'))
s.endswith('lo', 0, 5)
s.startswith(1)
s.replace('l', 'L')
s.replace('l', 'L', 2)
s.replace('', '-')
s.replace('l', '')
'aaa'.replace('aa', 'b')
s.find('World')
s.find('zz')
u.find('世')
s.find('l', 4)
s.find('l', -3)
s.rfind('l')
s.index('zz')
s.count('l')
s.count('')
', '.join(['a', 'b'])
', '.join([1])
''.join('abc')
'-'.join(d)
'x'.isdigit()
'12'.isdigit()
'²'.isdigit()
''.isdigit()
'ab'.isalpha()
'a1'.isalnum()
' '.isspace()
'AB'.isupper()
'ab1'.islower()
'5'.zfill(3)
'-5'.zfill(4)
'ab'.ljust(5) ~ '|'
'ab'.rjust(5, '*')
'ab'.center(5, '*')
'abc'.center(6, '*')
'prefix-x'.removeprefix('prefix-')
'x-suffix'.removesuffix('-suffix')
'a=b=c'.partition('=')
'a=b=c'.rpartition('=')
'abc'.partition('=')
'{} and {}'.format(1, 'b')
'{1} {0}'.format(1, 2)
'{a} {{x}}'.format(a=3)
'{}'.format()
'{'.format()
s|upper
s|lower
u|upper
'foo bar-baz (qux) x_y'|title
s|capitalize
ws|trim
'xxax'|trim('x')
x|trim
nil|trim
n|trim
s|length
u|length
l|count
d|length
n|length
x|length
nil|length
s|first
s|last
l|first
l|last
el|first
el|last
e|first
d|first
n|first
x|default('dd')
x|d('dd')
x|default
nil|default('dd')
nil|default('dd', true)
e|default('dd', boolean=true)
s|default('dd')
x.y|default('dd')
d.zz|default('dd')
l|join
l|join(', ')
m|join(',', attribute='role')
m|join(',', 'zz')
n|join
s|join('.')
none|join
s|replace('l', 'L')
s|replace('l', 'L', 1)
n|replace('4', '5')
s|replace('l')
s|list
d|list
x|list
nil|list
n|string
nil|string
x|string
l|string
'42'|int
' 42 '|int
'4_2'|int
'42.9'|int
'abc'|int
'abc'|int(7)
'abc'|int(default=none)
'0x1F'|int(base=16)
'ff'|int(0, 16)
'0b11'|int(0, 2)
'1e3'|int
'inf'|int
'-'|int
f|int
neg|int
t|int
nil|int
x|int
l|int
'1.5'|float
'abc'|float
'abc'|float(1.5)
' -1e3 '|float
'nan'|float
'infinity'|float
n|float
x|float
neg|abs
(-2.5)|abs
-1|abs
s|abs
2.5|round
3.5|round
2.567|round(2)
2.5|round(0, 'ceil')
2.5|round(method='floor')
-2.567|round(1, 'ceil')
1234|round(-2)
1250|round(-2)
42|round
1.005|round(2)
s|round
2.5|round(1, 'zzz')
l|sum
[0.1, 0.2]|sum
m|sum(attribute='n')
[[1], [2]]|sum(start=[])
ls|sum
el|sum
l|sort
ls|sort
ls|sort(case_sensitive=true)
l|sort(reverse=true)
m|sort(attribute='n')|map(attribute='n')|list
m|sort(attribute='role,n')|map(attribute='n')|list
m|sort(true, attribute='n')|map(attribute='role')|join(' ')
[1, 'a']|sort
ls|unique|list
['a', 'A', 'b', 'a']|unique|list
['a', 'A', 'b', 'a']|unique(true)|list
[1, 1.0, true, 2]|unique|list
[[1]]|unique|list
m|map(attribute='role')|unique|join(',')
l|min
l|max
ls|min
el|max
m|max(attribute='n')
l|reverse|list
s|reverse
d|reverse|list
n|reverse
d|dictsort
{'b': 1, 'A': 2, 'a': 3}|dictsort
{'b': 1, 'A': 2, 'a': 3}|dictsort(true)
{'b': 1, 'A': 2, 'a': 3}|dictsort(false, 'value')
{'b': 1, 'A': 2}|dictsort(by='value', reverse=true)
l|dictsort
d|items|list
x|items|list
l|items|list
m|map(attribute='content')|list
m|map(attribute='content', default='-')|list
d|map('upper')|list
ls|map('upper')|join
['1', '2']|map('int')|sum
ls|map('replace', 'a', 'z')|list
ls|map('nosuch')|list
ls|map|list
m|map(attribute='role', foo=1)|list
[[1, 2], [3, 4]]|map(attribute=1)|list
[[1, 2], [3, 4]]|map('last')|list
[0, 1, '', 'a', none]|select|list
[0, 1, '', 'a', none]|reject|list
l|select('odd')|list
l|select('gt', 1)|list
l|select('>', 1)|list
l|reject('equalto', 1)|list
m|selectattr('role', 'equalto', 'user')|list
m|selectattr('content')|map(attribute='n')|list
m|selectattr('content', 'defined')|list|length
m|rejectattr('role', 'eq', 'user')|map(attribute='n')|list
m|selectattr('role', 'in', ['user', 'User'])|list|length
m|selectattr|list
m|selectattr('role', 'nosuch')|list
(m|selectattr('role', 'eq', 'user'))|length
(m|selectattr('role', 'eq', 'user')|list)[0].content
(l|map('string'))[0]
l|batch(2)|list
l|batch(2, 'x')|list
range(5)|list
range(2, 8, 3)|list
range(5, 0, -2)|list
range(3)
range(0)|length
range(3)[1]
range(1, 2, 3)
range(5)[1:3]|list
range(3, 1)|list
range(1000000)
range(1, 2, 0)
range('a')
dict(a=1, b='x')
dict(d, z=9)
dict([('a', 1), ('b', 2)])
dict(1)
namespace(a=1).a
namespace(a=1)['a']
namespace(a=1).b
namespace(_a=1)
namespace(d).b.c
d|tojson
l|tojson
s|tojson
u|tojson
q|tojson
ctl|tojson
u|tojson(ensure_ascii=true)
ctl|tojson(true)
m|tojson(indent=2)
d|tojson(indent=4)
ed|tojson(indent=2)
el|tojson(indent=2)
[[], {}, [1]]|tojson(indent=1)
d|tojson(indent='--')
d|tojson(separators=(',', ':'))
d|tojson(indent=2, separators=(' ;', ' = '))
{'b': 1, 'a': {'d': 1, 'c': 2}}|tojson(sort_keys=true)
{1: 2, none: 3, true: 4, 1.5: 6}|tojson
{(1, 2): 3}|tojson
(1, (2, 3))|tojson
[1.0, 1e20, 1e-7, -0.0, true, none]|tojson
x|tojson
[x]|tojson
range(3)|tojson
d.keys()|tojson
(l|map('string'))|tojson
namespace(a=1)|tojson
q|e
q|escape|upper
(q|safe) ~ '<'
('<i>'|safe) + '<b>'
'<b>' + ('<i>'|safe)
('<i>'|safe|length)
(q|e)|e
q|forceescape
q|safe|string|e
lines|indent
lines|indent(2)
lines|indent(2, true)
lines|indent(2, true, true)
lines|indent('> ', first=true)
e|indent(2, true)
n|indent
'%s-%s'|format(1, 'b')
'%(a)s'|format(a=1)
'%s'|format
'a b'|wordcount
'foo bar baz qux'|truncate(9)
'foo bar baz qux'|truncate(9, true)
'foo bar baz qux'|truncate(11)
'foo bar baz qux'|truncate(11, false, '…', 0)
'ab'|center(6) ~ '|'
d|attr('a')
'x'|nosuch
s is string
n is string
n is number
t is number
t is integer
n is integer
f is float
f is number
t is boolean
n is boolean
t is true
n is true
no is false
nil is none
x is none
x is defined
x is undefined
s is defined
d.zz is defined
d is mapping
l is mapping
l is sequence
s is sequence
d is sequence
n is sequence
x is sequence
l is iterable
n is iterable
x is iterable
nil is iterable
range is callable
x is callable
s is callable
s.upper is callable
3 is odd
4 is even
s is even
9 is divisibleby 3
9 is divisibleby(2)
9 is divisibleby 0
1 is eq 1
1 is equalto(2)
1 is == 1
1 is ne 2
1 is lt 2
2 is gt 1
2 is le 2
2 is greaterthan 2
1 is in l
1 is in [1]
'b' is not in ls
1 is sameas 1
l is sameas l
l is sameas [3, 1, 2]
none is sameas none
'AB' is upper
'ab' is lower
'Ab' is lower
x is nosuch
n is not string
not n is string
n is string or n is number
x is defined and x
'upper' is filter
'zzz' is filter
'odd' is test
1.0
100.0
1e22
-0.0
3.14159265358979
5e-324
1.7976931348623157e308
[1.0, 'a', none, true, {'k': "it's"}, (1,), ()]
["it's", 'say "x"', "both ' and \""]
['\n\t\r\\', '\x00\x7f\u200b\xa0', 'é😀']
{'a': [1, {'b': none}]}
(1,)
()
[]
{}
'a' 'b' "c"
'\x41\u00e9\U0001F600\101\n|\t|\\|\'|\"|\q'
"a\
b"
'tab\there'
true
none
True ~ False ~ None
loop is defined
9223372036854775807
9223372036854775807 - 1
-9223372036854775807
strftime_now('%Y-%m-%d')
strftime_now('%d %b %Y')
strftime_now('%B %-d, %Y')
strftime_now(1)
raise_exception('boom')
raise_exception()
l|map('multiply')|list
(1 if t else 2) + 1
[n, s][0]
{'a': {'b': 1}}.a.b
'abc'[1]
'abc'.upper()[0]
(l|length) - 1
l|length - 1
l[l|length - 1]
m[-1].role
m[0]['content'] + m[1]['content']
m|length > 2 and m[0].role == 'user'
m[1:]|length
m[0].role not in ['a', 'b']
m[5]
m[5].role
m[5] is defined
m[2].content is defined
m[2].content is none
m[2].content
m[2].content + 'x'
'x' + m[2].content
m[2]['content'] ~ 'x'
m[0].items()|list
m[0]|length
m[0]|list
'role' in m[0]
m == m
1, 2
1,
(1, 2)[0]
a if b
s is defined if t
not (a is defined)
'a' ~ ('b' if no)
[1, 2, 3][-2:]
'ab' in ('ab', 'c')
1 in {1: 2}
'1' in {1: 2}
{1: 'a', true: 'b'}
{'a': 1, 'a': 2}
{[1]: 2}
s.nosuch
s.nosuch()
s.__class__
l.__class__ is defined
d.__init__
s['upper']()
d['get']('a')
'straße'.upper() ~ 'İ'.lower() ~ 'ΑΣ'.lower()
"x" if x is defined else "y"
-n|abs
-5 // 2|abs
10 - 2 - 3
2 * 3 % 4
1 ~ 2 + 3
1 + 2 ~ 3
'a' ~ 1 * 2
1 == 1 == 1
1 in [1] in [[1]]
not 1 in [2]
s.upper().lower().title()
(s|upper).split(' ')|first
s|upper|lower|title
x.y.z|default('q')
[1,2,]
{'a':1,}
[,]
(,)
{,}
1 +
)
a b
'unclosed
s|
s is
s.
s[
foo(1 2)
foo(a=1, 2)
foo(a=1, a=2)
dict(a=1, a=2)
1.foo
0777
1__0
0x
'\xZZ'
'\u12'
"""

PROGRAMS = [
    "{% for x in l %}{{ x }}{{ ',' if not loop.last }}{% endfor %}",
    "{% for x in l %}{{ loop.index }}/{{ loop.length }}:{{ loop.index0 }}:{{ loop.revindex }}:{{ loop.revindex0 }}:{{ loop.first }}:{{ loop.last }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem }}|{{ loop.nextitem }};{% endfor %}",
    "{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle() }}{% endfor %}",
    "{% for x in [1,1,2,2,1] %}{{ loop.changed(x) }} {% endfor %}",
    "{% for x in l %}{{ loop.depth }}{{ loop.depth0 }}{{ loop.zz }}{% endfor %}",
    "{% for x in el %}a{% else %}empty{% endfor %}",
    "{% for x in l %}a{% else %}empty{% endfor %}",
    "{% for x in l %}{% continue %}{% else %}quirk{% endfor %}",
    "{% for x in l %}{% break %}{% else %}quirk{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}{{ x }}{{ loop.length }}{{ loop.last }}{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.last }}{{ loop.revindex }}{% endfor %}",
    "{% for x in l if x > 5 %}{{ x }}{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d|dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in d %}{{ k }};{% endfor %}",
    "{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }};{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}",
    "{% for a, b in [1] %}{{ a }}{% endfor %}",
    "{% for c in 'añ😀' %}[{{ c }}]{% endfor %}",
    "{% for c in n %}{% endfor %}",
    "{% for c in nil %}{% endfor %}",
    "{% for c in zz %}x{% else %}y{% endfor %}",
    "{% for c in zz.y %}x{% endfor %}",
    "{% for x in range(3) %}{% for y in range(2) %}{{ loop.index }}{{ x }}{{ y }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in l|sort %}{{ x }}{% endfor %}{{ x }}",
    "{% set x = 1 %}{% for y in l %}{% set x = y %}{% endfor %}{{ x }}",
    "{% set x = 1 %}{% for y in l %}{{ x }}{% set x = y %}{{ x }};{% endfor %}{{ x }}",
    "{% set x = 1 %}{% if t %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% if no %}{% set x = 2 %}{% endif %}{{ x is defined }}",
    "{% set ns = namespace(x=1) %}{% for y in l %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{% set ns.b = 2 %}{{ ns.a }}{{ ns.b }}{{ ns.c }}",
    "{% set ns = namespace() %}{% set ns._a = 1 %}",
    "{% set d.a = 1 %}",
    "{% set q.a = 1 %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a, b = 1, 2, 3 %}{{ a }}",
    "{% set a = 1, 2 %}{{ a }}",
    "{% set (a, b) = (1, 2) %}{{ b }}",
    "{% set ns = namespace() %}{% set ns.a, b = 1, 2 %}{{ ns.a }}{{ b }}",
    "{% set x %}a{{ n }}b{% endset %}[{{ x }}]{{ x|length }}",
    "{% set x | upper | trim %} abc {% endset %}[{{ x }}]",
    "{% set x %}{% set y = 1 %}{{ y }}{% endset %}{{ x }}{{ y is defined }}",
    "{% macro f(a, b=2) %}[{{ a }},{{ b }}]{% endmacro %}{{ f(1) }}{{ f(1, 3) }}{{ f(b=5, a=4) }}{{ f() }}",
    "{% macro f(a, b=a) %}[{{ a }},{{ b }}]{% endmacro %}{{ f(1) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(zz=2) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}",
    "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, x=3) }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% macro f() %}{{ x }}{% endmacro %}{% set x = 7 %}{{ f() }}",
    "{% macro f() %}{{ y }}{% endmacro %}{% for y in l %}{{ f() }}{% endfor %}",
    "{% for y in l %}{% macro f() %}{{ y }}{% endmacro %}{{ f() }}{% endfor %}",
    "{% macro f() %}{% set z = 5 %}{{ z }}{% endmacro %}{{ f() }}{{ z }}",
    "{% macro f() %}  x  {% endmacro %}[{{ f()|trim }}]{{ f() is string }}{{ f is callable }}{{ f.name }}",
    "{% macro f(a, b) %}{% endmacro %}{{ f }}",
    "{% macro f(a=1, b) %}{% endmacro %}",
    "{% macro box(t) %}<{{ t }}>{{ caller() }}</{{ t }}>{% endmacro %}{% call box('b') %}in {{ n }}{% endcall %}",
    "{% macro each(xs) %}{% for x in xs %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(i) each(l) %}<{{ i }}>{% endcall %}",
    "{% macro f() %}{{ caller() }}{% endmacro %}{{ f() }}",
    "{{ undefined_macro(1) }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% with %}{% set a = 1 %}{{ a }}{% endwith %}{{ a is defined }}",
    "{% set a = 5 %}{% with a = a + 1, b = a %}{{ a }}{{ b }}{% endwith %}",
    "{% filter upper %}abc {{ s }}{% endfilter %}",
    "{% filter replace('a', 'b') | title %}aaa aab{% endfilter %}",
    "{% if z %}a{% elif e %}b{% elif n %}c{% else %}d{% endif %}",
    "{% if x %}a{% else %}b{% endif %}",
    "{% if x.y %}a{% endif %}",
    "{% if not x %}a{% endif %}{% if x is not defined %}b{% endif %}",
    "{% if n == 42 and s or zz.y %}ok{% endif %}",
    "{% generation %}{{ s }}{% set g = 1 %}{% endgeneration %}{{ g }}",
    "{% raw %}{{ not }} {% a %} {# b #}{% endraw %}",
    "a {%- raw -%}  {{ x }}  {%- endraw -%} b",
    "  {% raw %}\n x {% endraw %}\n y",
    "{# comment #}x{#- c -#}  y",
    "a\n{# comment #}\nb",
    "  {# c #}  \nb",
    "line1\n  {% if t %}\n  body\n  {% endif %}\nend",
    "line1\n  {%- if t %}\n  body\n  {%- endif %}\nend",
    "line1\n  {% if t -%}\n  body\n  {% endif -%}\n  end",
    "line1\n  {%+ if t +%}\n  body\n  {%+ endif +%}\nend",
    "  {{ n }}  \n  {{- n -}}  \n x",
    "{{ n }}\n{{ n }}\n",
    "{{ n }}\n\n",
    "a\r\nb\rc\r\n",
    "\n{% if t %}\n\nx\n\n{% endif %}\n\n",
    "{% if t %}x{% endif %}  {% if t %}y{% endif %}",
    "\t {% set a = 1 %} \t\n{{ a }}",
    "a {% if t %} b {% endif %} c",
    "{{ '}}' }}{{ \"%}\" }}{{ {'a': {'b': 1}} }}{{ {'a': {'b': 1}}['a'] }}",
    "{{ {'a': 1}}}",
    "{% for x in l -%}\n {{ x }}\n{%- endfor %}",
    "{{- ' a ' -}} b {{- ' c ' }}",
    "{%if t%}x{%endif%}",
    "{% if t: %}x{% endif %}",
    "{% print n, s %}",
    "{ { n } } {% %}",
    "{ % x % } {x} {",
    "{% if t %}",
    "{% endif %}",
    "{% for x in l %}{% endif %}",
    "{% nosuch %}",
    "{{ n",
    "{% if n",
    "{# open",
    "{% raw %} open",
    "{% break %}",
    "{% for x in l %}{% macro f() %}{% break %}{% endmacro %}{% endfor %}",
    "{% for x in %}{% endfor %}",
    "{% for 1 in l %}{% endfor %}",
    "{% set 1 = 2 %}",
    "{% set x %}",
    "{% set true = 1 %}",
    "{% set x = %}",
    "{% include 'x' %}",
    "{% do x %}",
    "{{ x | map | list }}",
    "{% set it = m|selectattr('n') %}{% for a in it %}{{ a.n }}{% endfor %}{% for a in it %}{{ a.n }}{% endfor %}",
    "{% set it = l|map('string') %}{{ it|join }}{{ it|join }}",
    "{% set it = l|map('string') %}{{ '1' in it }}{{ it|list }}",
    "{% set it = l|reject('odd') %}{{ it is iterable }}{{ it is sequence }}{{ it|first }}{{ it|first is defined }}",
    "{% set x = ['a'] + ['b'] %}{{ x }}{% set x = x + [1] %}{{ x|length }}",
    "{% set x = dict(d, z=1) %}{{ x.z }}{{ d.z }}",
    "{% for m1 in m %}{% if m1.role == 'user' and loop.index0 % 2 == 0 %}U{% else %}{{ m1.get('content', '?') }}{% endif %}{% endfor %}",
    "{% for m1 in m[::-1] %}{{ m1.n }}{% endfor %}",
    "{% for m1 in m|reverse %}{{ loop.index }}{{ loop.length }}{{ m1.n }}{% endfor %}",
    "{% for x in l|map('string') %}{{ loop.length }}{{ loop.last }}{{ x }} {% endfor %}",
    "{% set ns = namespace(seen=false) %}{% for x in l if not ns.seen %}{{ x }}{% set ns.seen = true %}{% endfor %}",
    "{% set ns = namespace(seen=false) %}{% for x in l if not ns.seen %}{{ x }}{{ loop.last }}{% set ns.seen = true %}{% endfor %}",
    "{% set ns = namespace(i=0) %}{% for x in l %}{% for y in l %}{% set ns.i = ns.i + 1 %}{% if ns.i > 4 %}{% break %}{% endif %}{% endfor %}{% endfor %}{{ ns.i }}",
    "{% set s2 = s %}{% for c in s2 %}{% if c == ',' %}{% set s2 = 'q' %}{% endif %}{% endfor %}{{ s2 }}",
    "{% for i in range(2) %}{% set v = i %}{% if i == 0 %}{% set v = 'z' %}{% endif %}{{ v }}{% endfor %}",
    "{{ m | tojson(indent=4) | safe }}",
    "{% set loop_count = 3 %}{% for loop_count in range(2) %}{{ loop_count }}{% endfor %}{{ loop_count }}",
    "{% if m[0]['role'] == 'user' %}{% set first = m[0]['content']|trim %}{% set rest = m[1:] %}{% else %}{% set rest = m %}{% endif %}{{ first }}{{ rest|length }}",
    "{% if tools is not none and tools|length > 0 %}T{% else %}N{% endif %}{{ documents is none }}{{ tools is none }}",
    "{{ bos_token }}{{ eos_token is defined }}{{ add_generation_prompt }}",
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}",
    "{% if not t %}{{ raise_exception('no') }}{% endif %}fine",
    "{%- set x = namespace(n=0) -%}\n\n{%- for a in l -%}\n  {%- set x.n = x.n + a -%}\n{%- endfor -%}\n\n{{- x.n -}}\n",
    "{{ '<|' + 'im_start' + '|>' }}{{ ['a', 'b'] | join('<|x|>') }}",
    "{%- macro p(x, depth=0) -%}{%- if x is mapping -%}{ {%- for k, v in x|dictsort -%}{{ k }}:{{ p(v, depth + 1) }}{%- if not loop.last %},{% endif -%}{%- endfor -%} }{%- elif x is string -%}{{ x }}{%- elif x is iterable -%}[{%- for v in x -%}{{ p(v) }}{{ ',' if not loop.last }}{%- endfor -%}]{%- else -%}{{ x }}{%- endif -%}{%- endmacro -%}{{ p(d) }}",
]

SNIPPETS = ["{{ " + line + " }}" for line in EXPRESSIONS.strip("\n").split("\n")]
# the one expression that spans two lines
for i, snippet in enumerate(SNIPPETS):
    if snippet == "{{ \"a\\ }}":
        SNIPPETS[i:i + 2] = ["{{ \"a\\\nb\" }}"]
        break
SNIPPETS += PROGRAMS
