"""Which operators reach out of a model when it is run: to files, to the network, to Python.

TensorFlow's own advice is that a model is a program (``SECURITY.md``). What a saved model needs to load its own variables and
vocabularies (``SaveV2``, ``RestoreV2``, ``InitializeTableFromTextFile``) is no reason for alarm.
"""

from __future__ import annotations

from collections.abc import Mapping

READS, WRITES, NETWORK, PYTHON = "reads files", "writes files", "opens connections", "calls Python"
RUNS = "runs a graph that it is given as text, which may do all of these,"
_READS = """
    ReadFile MatchingFiles MatchingFilesDataset ExperimentalMatchingFilesDataset WholeFileReader WholeFileReaderV2
    TextLineReader TextLineReaderV2 TextLineDataset FixedLengthRecordReader FixedLengthRecordReaderV2
    FixedLengthRecordDataset FixedLengthRecordDatasetV2 TFRecordReader TFRecordReaderV2 TFRecordDataset
    TFRecordDatasetV2 CSVDataset CSVDatasetV2 ExperimentalCSVDataset SqlDataset ExperimentalSqlDataset LMDBReader
    LMDBDataset ExperimentalLMDBDataset LoadDataset SnapshotDatasetReader SnapshotNestedDatasetReader
    SnapshotChunkDataset ListSnapshotChunksDataset LoadAndRemapMatrix GenerateVocabRemapping IndexTFRecordDataset
    ExperimentalIndexTFRecordDataset
"""
_WRITES = """
    WriteFile SaveDataset SaveDatasetV2 DistributedSave SnapshotDataset SnapshotDatasetV2 DatasetToTFRecord
    ExperimentalDatasetToTFRecord CreateSummaryFileWriter CreateSummaryDbWriter
"""
_NETWORK = """
    RpcClient RpcCall RpcServer RpcServerRegister RpcServerStart DataServiceDataset DataServiceDatasetV2
    DataServiceDatasetV3 DataServiceDatasetV4 RegisterDataset RegisterDatasetV2 Rpc TryRpc BigQueryReader
    GcsConfigureBlockCache GcsConfigureCredentials FileSystemSetConfiguration
"""
_PYTHON = """
    PyFunc PyFuncStateless EagerPyFunc
"""
_RUNS = """
    DatasetFromGraph
"""
OPERATORS: Mapping[str, str] = {
    **dict.fromkeys(_READS.split(), READS),
    **dict.fromkeys(_WRITES.split(), WRITES),
    **dict.fromkeys(_NETWORK.split(), NETWORK),
    **dict.fromkeys(_PYTHON.split(), PYTHON),
    **dict.fromkeys(_RUNS.split(), RUNS),
}
BY_ATTRIBUTE: Mapping[str, tuple[str, tuple[bytes, ...]]] = {
    "PrintV2": ("output_stream", (b"file://",)),
    "DebugIdentity": ("debug_urls", (b"file://", b"grpc://")),
    "DebugNanCount": ("debug_urls", (b"file://", b"grpc://")),
    "DebugNumericSummary": ("debug_urls", (b"file://", b"grpc://")),
    "DebugIdentityV2": ("debug_urls", (b"file://", b"grpc://")),
    "DebugIdentityV3": ("debug_urls", (b"file://", b"grpc://")),
    "DebugNumericSummaryV2": ("debug_urls", (b"file://", b"grpc://")),
    "DecodeProtoV2": ("descriptor_source", (b"/", b".")),
    "EncodeProto": ("descriptor_source", (b"/", b".")),
}
"""Operators that reach out where an attribute says so: the attribute, and how its text then begins. (TensorFlow takes any
``descriptor_source`` for a path that is not ``local://`` or ``bytes://``.)"""
SAVERS = frozenset(("Save", "SaveV2", "SaveSlices", "MergeV2Checkpoints"))
SAVING = "save"
"""What the names of functions hold that TensorFlow makes to save a model's own variables (``__inference__traced_save_12``)."""
