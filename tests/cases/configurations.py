"""Bad configurations of a recipe: name -> (the YAML, what the error says)."""

from __future__ import annotations

_ALIASES = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(9)
)

BAD_CONFIGURATIONS: dict[str, tuple[bytes, str]] = {
    "text": (b"hello", "expected keys with values"),
    "a list": (b"- 1\n- 2\n", "got a list"),
    "an unknown key": (b"encoderr: tiny-wavlm", "unknown key 'encoderr'; did you mean 'encoder'"),
    "a number as a key": (b"3: x", "unknown key '3'"),
    "a key twice": (b"beam: 1\nbeam: 2\n", ":2: key 'beam' stands on line 1 already"),
    "a tab": (b"beam:\t\t- x\n\tx", "not valid YAML"),
    "not closed": (b"beam: [1, 2", "not valid YAML"),
    "a quote not closed": (b'encoder: "tiny', "not valid YAML"),
    "two documents": (b"beam: 1\n---\nbeam: 2\n", "not valid YAML"),
    "Latin-1": (b"encoder: \xe9", "cannot be read as a UTF-8 YAML file"),
    "NUL": (b"encoder: a\0", "not valid YAML"),
    "NUL by its escape": (b'encoder: "a\\0"', "encoder: expected text"),
    "half a surrogate pair": (b'encoder: "\\uD800"', "encoder: expected text"),
    "NUL in a path": (b'adapter: "a\\0"', "adapter: expected a path"),
    "a word for a number": (b"alpha: much", "alpha: expected a number, got 'much'"),
    "a fraction for an integer": (b"beam: 1.5", "beam: expected"),
    "true for a number": (b"alpha: true", "alpha: expected a number, got True"),
    "null for a number": (b"alpha:", "alpha: expected a number, got None"),
    "a list for a number": (b"alpha: [1]", "alpha: expected a number"),
    "keys for a number": (b"alpha: {a: 1}", "alpha: expected a number"),
    "NaN": (b"alpha: .nan", "alpha: expected a number, got nan"),
    "another choice": (b"precision: fp8", "precision: expected one of fp32, bf16"),
    "an integer of 5,000 digits": (b"beam: " + b"9" * 5_000, "not valid YAML: a value is not what its tag says"),
    "an integer of 4,000 digits": (b"alpha: " + b"9" * 4_000, "alpha: expected a number"),
    "!!int abc": (b"beam: !!int abc", "a value is not what its tag says"),
    "!!int of nothing": (b'beam: !!int ""', "a value is not what its tag says"),
    "!!float abc": (b"alpha: !!float abc", "a value is not what its tag says"),
    "!!bool perhaps": (b"beam: !!bool perhaps", "a value is not what its tag says"),
    "!!timestamp": (b"beam: !!timestamp 9", "a value is not what its tag says"),
    "!!binary": (b'beam: !!binary "%"', "beam: expected an integer or null, got b"),
    "code": (b"encoder: !!python/object/apply:os.system [ls]", "not valid YAML: could not determine a constructor"),
    "an alias of nothing": (b"encoder: *x", "not valid YAML: found undefined alias"),
    "an alias of itself": (b"encoder: &x [*x]", "more than 10000 values, aliases written out, or 50 levels"),
    "a bomb of aliases": (_ALIASES, "more than 10000 values"),
    "a bomb of merged keys": (b"a: &a {x: 1}\nb: &b {<<: [*a, *a]}\n" + b"".join(
        b"%c: &%c {<<: [%s]}\n" % (99 + i, 99 + i, b", ".join([b"*%c" % (98 + i)] * 9)) for i in range(8)
    ), "more than 10000 values"),
    "nested without end": (b"encoder: " + b"[" * 20_000, "more than 10000 values|50 levels"),
    "nested blocks": (b"- " * 20_000 + b"x", "50 levels"),
    "a megabyte": (b"encoder: " + b"x" * 1_000_000, "1000009 characters are too many for a configuration"),
    "11,000 values": (b"encoder: [" + b"1," * 11_000 + b"]", "more than 10000 values"),
}  # fmt: skip
