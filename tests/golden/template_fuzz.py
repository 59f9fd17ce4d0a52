"""Random template programs for template_parity.py: grammar-driven, so that most of them compile and many of them run."""
import random

STR = ["s", "u", "e", "ws", "q", "lines", "csv", "'a'", "','", "'a\\nb'", "'\\u00e9'", "m[0].role", "'%s'", "s ~ n", "'<|x|>'", "tag"]
INT = ["n", "z", "neg", "1", "0", "2", "d.a", "loop.index", "ns.v", "l|length", "f", "2.5", "t"]
LIST = ["l", "el", "ls", "[1, 'a']", "('x', 2)", "range(4)", "m", "d.b.c", "s.split()", "d.items()|list", "ls[:2]", "m|map(attribute='role')|list"]
DICT = ["d", "ed", "m[0]", "d.b", "{'k': 1, 'A': 'x'}", "m[-1]", "dict(d, y=2)"]
ODD = ["x", "nil", "none", "no", "d.zz", "true", "loop.last", "d.keys()", "m[0].zz"]
STR_OPS = ["{s}|upper", "{s}|lower", "({s}).strip()", "({s})|trim", "({s}) + ({s})", "({s}) ~ ({v})", "({s})[{sl}]", "({s}).replace({s}, {s})",
           "({s})|replace('a', 'b')", "({s})|indent(2)", "({s})|title", "({s}).title()", "({s})|capitalize", "({l})|join({s})",
           "({v})|tojson", "({v})|string", "({s}) * ({i})", "({s}).split(',')|first", "({s}).rstrip()", "({s}).lstrip('H ')", "({s})|e",
           "({v})|tojson(indent=2)", "({s}) if ({v}) else ({s})", "({s})|reverse", "'-'.join(({l})|map('string'))", "({s})|default({s})",
           "({s}).splitlines()|join('/')", "({s}) or ({s})", "'%s|%5s' % (({v}), ({s}))", "({s})|truncate(9)", "({s}).partition('l')[2]",
           "({s})|safe", "'{{}}{{}}'.format({v}, {i})", "({l})|map('string')|join", "({s})|first", "({s}).rsplit('l', 1)[-1]", "({s}).center(9, '*')"]
INT_OPS = ["({i}) + ({i})", "({i}) - ({i})", "({i}) * ({i})", "({i}) // ({i})", "({i}) % ({i})", "({i}) / ({i})", "-({i})", "({i})|abs",
           "({s})|length", "({l})|length", "({s})|int", "({i})|round", "({i})|int", "({i})|float", "({s}).find({s})", "({s}).count('l')",
           "({l})|select('integer')|sum", "({i}) ** 2", "({d}).get('a', {i})", "({s})|wordcount", "(({i}) if ({v}) else ({i}))"]
LIST_OPS = ["({l})[{sl2}]", "({l}) + ({l})", "({l})|reverse|list", "({l})|list", "({s})|list", "({l})|unique|list", "({l})|map('string')|list",
            "({l})|select|list", "({l})|reject('string')|list", "({l})|select('string')|sort|list", "({d})|dictsort", "({d}).keys()|list",
            "({s}).split()", "({s}).split({s})", "range(({i})|int)|list", "m|selectattr('role', 'eq', {s})|list", "({l})|batch(2)|list",
            "[({v}), ({v})]", "(({s}), ({i}))", "m|rejectattr('content', 'undefined')|map(attribute='n')|list", "({l})|map('string')|sort(reverse=true)",
            "({s}).splitlines()", "({d}).values()|list", "({l}) or ({l})"]
TEST_OPS = ["({v}) is {t}", "({v}) is not {t}", "({v}) == ({v})", "({v}) != ({v})", "({s}) in ({s})", "({v}) in ({l})", "({s}) not in ({d})",
            "({i}) < ({i})", "({i}) <= ({i}) < ({i})", "({s}) >= ({s})", "not ({v})", "({v}) and ({v})", "({v}) or ({v})", "({s}).startswith({s})",
            "({s}).endswith(('d', 'x'))", "({s}).isdigit()", "({i}) > ({i})", "({v}) if ({v})"]
TESTS = ["defined", "none", "string", "number", "mapping", "iterable", "sequence", "true", "boolean", "integer", "float", "undefined",
         "callable", "in ls", "eq 1", "lower", "upper", "sameas true"]
SLICES = ["0", "-1", "1:", ":-1", "::2", "::-1", "1:3", "-5:5", "99", "2:0:-1"]
FILTERS = ["upper", "lower", "trim", "length", "first", "last", "list", "string", "int", "float", "tojson", "join", "sort", "unique|list", "title",
           "abs", "sum", "default('D')", "default('D', true)", "items|list", "dictsort", "round", "min", "max", "e", "count", "map('upper')|list"]


class Maker:
    def __init__(self, seed):
        self.r = random.Random(seed)

    def fill(self, pattern, depth):
        values = {"s": self.typed(STR, STR_OPS, depth), "i": self.typed(INT, INT_OPS, depth), "l": self.typed(LIST, LIST_OPS, depth),
                  "d": self.r.choice(DICT), "v": self.expr(depth), "t": self.r.choice(TESTS), "sl": self.r.choice(SLICES),
                  "sl2": self.r.choice(["1:", ":-1", "::2", "::-1", "1:3", "-5:5", "2:0:-1", "0:0"])}
        return pattern.format(**values)

    def typed(self, atoms, ops, depth):
        if depth <= 0 or self.r.random() < 0.3:
            return self.r.choice(atoms)
        return self.fill(self.r.choice(ops), depth - 1)

    def expr(self, depth):
        r, roll = self.r, self.r.random()
        if roll < 0.04:
            return f"({r.choice(ODD + STR + INT)})|{r.choice(FILTERS)}"
        if roll < 0.08:
            return r.choice(ODD)
        if roll < 0.13:
            return r.choice(DICT)
        if roll < 0.20:
            return self.typed(["t"], TEST_OPS, depth)
        atoms, ops = r.choice([(STR, STR_OPS), (STR, STR_OPS), (INT, INT_OPS), (LIST, LIST_OPS)])
        return self.typed(atoms, ops, depth)

    def tag(self, text):
        return "{%" + self.r.choice(["", "", "-", "+"]) + f" {text} " + self.r.choice(["", "", "-", "+"]) + "%}"

    def text(self):
        return self.r.choice(["a", " ", "\n", "  \n ", "x\n", "\t", "<|im_end|>", "{# c #}", "\n  {#- c -#} \n"])

    def body(self, depth, loops):
        return "".join(self.statement(depth, loops) for _ in range(self.r.randint(1, 3)))

    def statement(self, depth, loops):
        r, roll = self.r, self.r.random()
        if depth <= 0 or roll < 0.35:
            sign, end = r.choice(["", "", "-"]), r.choice(["", "", "-"])
            return self.text() + "{{" + sign + " " + self.expr(r.randint(0, 3)) + " " + end + "}}" + self.text()
        if roll < 0.50:
            other = self.tag("else") + self.body(depth - 1, loops) if r.random() < 0.5 else ""
            return self.tag(f"if {self.expr(2)}") + self.body(depth - 1, loops) + other + self.tag("endif")
        if roll < 0.70:
            target = r.choice(["i", "i", "i", "k, v", "x"])
            source = self.expr(2) if target != "k, v" else r.choice(["d.items()", "d|dictsort", "m[0].items()", self.expr(1)])
            guard = f" if {self.expr(1)}" if r.random() < 0.25 else ""
            other = self.tag("else") + self.body(depth - 1, loops) if r.random() < 0.2 else ""
            return self.tag(f"for {target} in {source}{guard}") + self.body(depth - 1, loops + 1) + other + self.tag("endfor")
        if roll < 0.82:
            return self.tag(f"set {r.choice(['x', 'y', 'ns.v'])} = {self.expr(2)}")
        if roll < 0.88:
            return self.tag("set x") + self.body(depth - 1, loops) + self.tag("endset") + "{{ x }}"
        if roll < 0.93:
            return self.tag("macro mac(a, b=2)") + self.body(depth - 1, 0) + self.tag("endmacro") + "{{ mac(" + self.expr(1) + ") }}"
        if loops and roll < 0.97:
            return self.tag(f"if {self.expr(1)}") + self.tag(r.choice(["break", "continue"])) + self.tag("endif")
        return self.tag(f"with y = {self.expr(1)}") + self.body(depth - 1, loops) + self.tag("endwith")


def is_stable(text):
    """Addresses of Python objects and the text of functions and loops are nobody's contract."""
    return not any(mark in text for mark in (" object at 0x", "<built-in", "<LoopContext", "<class '", "<function "))


def programs(count, seed):
    maker = Maker(seed)
    for _ in range(count):
        yield "{% set ns = namespace(v=1) %}" + maker.body(2, 0)
