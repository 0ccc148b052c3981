"""Sets of CIFAR-100's classes, by index, of which encoders and h learn and galleries are made."""

# The superclasses aquatic mammals, fish, insects, large carnivores, large omnivores and herbivores, medium mammals,
# invertebrates, people, reptiles and small mammals, five classes each.
ANIMALS = (
    *(4, 30, 55, 72, 95),
    *(1, 32, 67, 73, 91),
    *(6, 7, 14, 18, 24),
    *(3, 42, 43, 88, 97),
    *(15, 19, 21, 31, 38),
    *(34, 63, 64, 66, 75),
    *(26, 45, 77, 79, 99),
    *(2, 11, 35, 46, 98),
    *(27, 29, 44, 78, 93),
    *(36, 50, 65, 74, 80),
)
ALL = tuple(range(100))
THINGS = tuple(sorted(set(ALL) - set(ANIMALS)))  # and plants, and scenes
FEW = ALL[::5]  # those that there are at 128 pixels

# What h may learn from, by the name that its file has.
SETS: dict[str, tuple[int, ...]] = {
    "80-classes": ALL[:80],
    "50-classes": ALL[:50],
    "25-to-79": ALL[25:80],
    "things": THINGS,
    "16-few-classes": FEW[:16],
}
