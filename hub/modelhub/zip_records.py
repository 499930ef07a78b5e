"""The fixed parts of a zip file's records, for what reads them and for what writes them. Numbers are sections of APPNOTE.TXT."""

from __future__ import annotations

import struct

END = struct.Struct("<4s4H2LH")  # 4.3.16
LOCATOR = struct.Struct("<4sLQL")  # 4.3.15
END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
CENTRAL = struct.Struct("<4s6H3L5H2L")  # 4.3.12
LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
"""In a 16- or 32-bit field: the value stands in the zip64 record."""
