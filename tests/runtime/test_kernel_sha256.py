"""The C library's sha256 against hashlib's."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess

import numpy as np
import pytest

from odestream.runtime.kernels import build as kernels

pytestmark = pytest.mark.usefixtures("native_library")


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("sha256")
    (folder / "driver.cpp").write_text(
        '#include "sha256.h"\nextern "C" void digest(const void* data, size_t size, char* text) {'
        " std::strcpy(text, odestream::hexadecimal(odestream::Sha256::of(data, size)).c_str()); }\n"
    )
    options = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{kernels.SOURCES}"]
    command = [kernels.find_compiler(), *options, str(folder / "driver.cpp"), "-o", str(folder / "driver.so")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "driver.so"))


def test_the_librarys_sha256_is_hashlibs_for_every_length_around_its_blocks(digest: ctypes.CDLL) -> None:
    data = np.random.default_rng(0).bytes(100_000)
    text = ctypes.create_string_buffer(65)
    for size in (*range(200), 4095, 4096, 100_000):
        digest.digest(data[:size], ctypes.c_size_t(size), text)
        assert text.value.decode() == hashlib.sha256(data[:size]).hexdigest()
