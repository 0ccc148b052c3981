"""Keys that a text column may have, and that careless code would break on."""

ODD_KEYS = [
    "",
    "'; DROP TABLE items; --",
    '"quoted"',
    "<b>&amp;</b>",
    "%s %(x)s {}",
    "\\",
    "a\nb",
    "ключ",
    "鍵",
    "🖼️",
    "a,b",
    "{a}",
]
