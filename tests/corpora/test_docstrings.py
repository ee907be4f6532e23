import pytest

from maw_gym.corpora.docstrings import query_and_document, read_docstrings, source_files

TWELVE = "one two three four five six seven eight nine ten eleven twelve"


def docstring(query, document=TWELVE):
    return f'"""{query}\n\n{document}\n"""\n'


def read(root, package="pkg"):
    return read_docstrings({package: root}, {package: source_files(root)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"Return the sum.\n\n{TWELVE}", None),  # three words
        (f"Return the whole sum.\n\n{TWELVE}", ("Return the whole sum.", TWELVE)),
        (f"{'word ' * 41}\n\n{TWELVE}", None),
        (f"{'word ' * 40}\n\n{TWELVE}", (" ".join(["word"] * 40), TWELVE)),
        ("Return the whole sum.\n\n" + TWELVE.removesuffix(" twelve"), None),
        ("Return the whole sum of all.", None),
        # Line ends and indentation become single spaces, further paragraphs are the document.
        (
            "\n    Return the\n    whole   sum.\n  \n    one two three four five six\n\n"
            "        seven eight nine ten eleven twelve\n    ",
            ("Return the whole sum.", TWELVE),
        ),
        (f"Return the whole \ud800 sum.\n\n{TWELVE}", ("Return the whole \ufffd sum.", TWELVE)),
    ],
)
def test_query_and_document(text, expected):
    assert query_and_document(text) == expected


def test_names_of_modules_classes_functions_and_what_is_in_them(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "__init__.py").write_text(docstring("The package as a whole."))
    (tmp_path / "sub" / "__init__.py").write_text(docstring("A package in it."))
    body = "class A:\n    def f(self):\n        " + docstring("A method of a class.")
    body += "    if True:\n        async def g(self):\n            " + docstring(
        "An async one here."
    )
    body += "try:\n    pass\nexcept OSError:\n    def h():\n        x = lambda: 0\n"
    body += "        def inner():\n            " + docstring("A function in a function.")
    body += "def h():\n    " + docstring("First of the name.")
    body += "def h():\n    " + docstring("Second of the name.")
    (tmp_path / "sub" / "mod.py").write_text(body)
    found, counts = read(tmp_path)
    assert [(name, query) for name, query, _ in found] == [
        ("pkg", "The package as a whole."),
        ("pkg.sub", "A package in it."),
        ("pkg.sub.mod.A.f", "A method of a class."),
        ("pkg.sub.mod.A.g", "An async one here."),
        ("pkg.sub.mod.h", "First of the name."),
        ("pkg.sub.mod.h#2", "Second of the name."),
        ("pkg.sub.mod.h.inner", "A function in a function."),
    ]
    assert counts == {"files": 3, "unreadable_files": 0, "docstrings": 7}


def test_tests_copies_and_what_cannot_be_imported_by_name_are_left_out(tmp_path):
    kept = ["a.py", "b/c.py", "latest.py", "contest/d.py"]
    left = [
        *("test/x.py", "tests/x.py", "b/testing/x.py", "test_x.py", "x_test.py", "conftest.py"),
        *("_vendor/x.py", "b/vendored/x.py", "extern/x.py", "site-packages/x.py", "idlelib/x.py"),
        *("lib2to3/x.py", "ensurepip/x.py", "b/not-a-module.py", "notes.txt", "2.py"),
    ]
    for path in kept + left:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x = 1\n")
    assert source_files(tmp_path) == [(path, 6) for path in sorted(kept)]


def test_files_that_are_not_python_are_counted_and_nothing_is_run(tmp_path):
    (tmp_path / "ok.py").write_text(docstring("This one is fine.") + "raise SystemExit('run')\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "nul.py").write_bytes(b"x = 1\0\n")
    (tmp_path / "bytes.py").write_bytes(b'"""\xff"""\n')
    (tmp_path / "deep.py").write_text("x = " + "(" * 5000 + ")" * 5000)
    latin = "# coding: latin-1\n" + docstring("Encoded as the caf\xe9 says.")
    (tmp_path / "latin.py").write_bytes(latin.encode("latin-1"))
    (tmp_path / "escape.py").write_text('"""An invalid \\d escape warns.\n\n' + TWELVE + '"""\n')
    (tmp_path / "lone.py").write_text('"""A lone \\ud800 surrogate here.\n\n' + TWELVE + '"""\n')
    (tmp_path / "bad\udcff.py").write_text(docstring("A name without an encoding."))
    alone, _ = read(tmp_path / "ok.py", "ok")  # a module in a file of its own
    assert [name for name, *_ in alone] == ["ok"]
    found, counts = read(tmp_path, "")
    assert [tuple(each[:2]) for each in found] == [
        ("escape", "An invalid \\d escape warns."),
        ("latin", "Encoded as the caf\xe9 says."),
        ("lone", "A lone \ufffd surrogate here."),
        ("ok", "This one is fine."),
    ]
    assert (counts["unreadable_files"], counts["files"]) == (4, 8)
