"""All that a format plugin needs to test: the conformance kit, and what is special about its own format."""

import numpy as np
from modelhub.testing import FormatConformance


class TestNpz(FormatConformance):
    format = "npz"

    def write(self, path, tensors):
        np.savez(path, **tensors)

    def read(self, path):
        return dict(np.load(path))


class TestCompressedNpz(TestNpz):
    def write(self, path, tensors):
        np.savez_compressed(path, **tensors)
