"""The conformance kit: one class that the tests of any format plugin subclass. It needs pytest and NumPy, and nothing of the
core does.

    from modelhub.testing import FormatConformance

    class TestNpz(FormatConformance):
        format = "npz"

        def write(self, path, tensors):  # the outside truth: a real library, not your own code
            np.savez(path, **tensors)

What is tested follows from what the `Format` declares, not from the author's choice: every dtype in ``dtypes``, writing where
it has ``create``, ties where ``sharing`` allows them.
"""

from __future__ import annotations

from modelhub.testing.malformed import MalformedFiles
from modelhub.testing.reading import Reading
from modelhub.testing.writing import Writing

__all__ = ["FormatConformance"]


class FormatConformance(Reading, MalformedFiles, Writing):
    """Subclass it as ``class TestYours(FormatConformance)``.

    Set ``format`` to your format's name and define ``write(self, path, tensors)``: make a real file (or directory, where your
    format is one) at ``path`` from a dict of NumPy arrays, with a library that is not your plugin. Where that library cannot
    write a dtype that you declare, or your format declares none because its tensors lie in another's container, name those it can
    in ``library_dtypes``. Define ``read(self, path)``, which returns such a
    dict, to have that library open what your plugin wrote.
    """
