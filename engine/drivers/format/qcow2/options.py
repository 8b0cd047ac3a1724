"""The qcow2 driver's part of the schema: options of nodes, of creation, and what query results tell."""

from __future__ import annotations

from typing import Annotated

from engine.graph.options import BlockdevOptions, BlockdevOptionsGenericCOWFormat, BlockdevRef, PreallocMode
from engine.qapi import Alternate, Enum, Int, Size, Struct, UInt32, Union, tag_enum


class Qcow2OverlapCheckMode(Enum):
    """Templates of the overlap check: none; areas that never move; all areas known without reading; all areas.

    none: no checks
    constant: areas whose place never changes
    cached: also areas known without reading
    all: also areas that have to be read first
    """

    NONE = "none"
    CONSTANT = "constant"
    CACHED = "cached"
    ALL = "all"


class Qcow2OverlapCheckFlags(Struct):
    """Areas that writes are kept off, each by itself; template (default: cached) stands for those not given."""

    template: Qcow2OverlapCheckMode | None = None
    main_header: bool | None = None
    active_l1: bool | None = None
    active_l2: bool | None = None
    refcount_table: bool | None = None
    refcount_block: bool | None = None
    snapshot_table: bool | None = None
    inactive_l1: bool | None = None
    inactive_l2: bool | None = None
    bitmap_directory: bool | None = None


Qcow2OverlapChecks = Annotated[
    Qcow2OverlapCheckFlags | Qcow2OverlapCheckMode | None,
    Alternate("Qcow2OverlapChecks", flags=Qcow2OverlapCheckFlags, mode=Qcow2OverlapCheckMode),
]
"""A template's name, or flags."""


class BlockdevQcow2EncryptionFormat(Enum):
    """Kinds of encryption inside qcow2 images.

    aes: the old AES-CBC encryption, unsafe
    luks: a LUKS header inside the image
    """

    AES = "aes"
    LUKS = "luks"


class QCryptoBlockOptionsQCow(Struct):
    """key_secret: id of the secret object with the passphrase."""

    key_secret: str | None = None


class QCryptoBlockOptionsLUKS(Struct):
    """key_secret: id of the secret object with the passphrase."""

    key_secret: str | None = None


class BlockdevQcow2Encryption(Union, tag="format", tag_enum=BlockdevQcow2EncryptionFormat):
    """How to open an encrypted image."""

    format: BlockdevQcow2EncryptionFormat


BlockdevQcow2Encryption.add_branch("aes", QCryptoBlockOptionsQCow)
BlockdevQcow2Encryption.add_branch("luks", QCryptoBlockOptionsLUKS)


class BlockdevOptionsQcow2(BlockdevOptionsGenericCOWFormat):
    """Options of qcow2 nodes.

    lazy_refcounts: postpone refcount updates (default: the image's own flag). pass_discard_request: whether guest
    discards reach the file below (default: with discard=unmap). pass_discard_snapshot: the same when a snapshot or
    the whole content is dropped (default: yes). pass_discard_other: the same for other freed clusters (default: no).
    overlap_check: default cached. cache_size: bytes for all metadata caches. l2_cache_size, refcount_cache_size:
    bytes of one. l2_cache_entry_size: bytes of an entry of the L2 cache, a power of two. cache_clean_interval:
    seconds after which unused entries are dropped, 0 for never (default: 600). data_file: the external data file
    (default: the name in the image).
    """

    lazy_refcounts: bool | None = None
    pass_discard_request: bool | None = None
    pass_discard_snapshot: bool | None = None
    pass_discard_other: bool | None = None
    overlap_check: Qcow2OverlapChecks = None
    cache_size: Int | None = None
    l2_cache_size: Int | None = None
    l2_cache_entry_size: Int | None = None
    refcount_cache_size: Int | None = None
    cache_clean_interval: Int | None = None
    encrypt: BlockdevQcow2Encryption | None = None
    data_file: BlockdevRef | None = None


# -- creation --------------------------------------------------------------------------------------------------------


class BlockdevQcow2Version(Enum):
    """Versions of the format: v2 is compat=0.10, v3 is compat=1.1.

    v2: compat=0.10, readable by every QEMU
    v3: compat=1.1, with zero clusters, bitmaps and lazy refcounts
    """

    V2 = "v2"
    V3 = "v3"


class Qcow2CompressionType(Enum):
    """How compressed clusters are compressed.

    zlib: deflate, readable by every QEMU
    zstd: Zstandard, faster and denser
    """

    ZLIB = "zlib"
    ZSTD = "zstd"


class QCryptoBlockFormat(Enum):
    """Formats of encrypted block devices.

    qcow: the old AES-CBC encryption of qcow images
    luks: LUKS version 1
    """

    QCOW = "qcow"
    LUKS = "luks"


class QCryptoBlockLUKSKeyslotState(Enum):
    """Whether a key slot of a LUKS header is to open the volume.

    active: the slot opens the volume
    inactive: the slot is wiped
    """

    ACTIVE = "active"
    INACTIVE = "inactive"


class QCryptoBlockAmendOptionsLUKS(Struct):
    """A change of the key slots of a LUKS header. state: what they become. new_secret: id of the secret of an active
    one. old_secret: id of the secret of those that become inactive. keyslot: the slot, where it is a certain one.
    iter_time: milliseconds that trying a passphrase is to take. secret: id of the secret that opens the volume now.
    """

    state: QCryptoBlockLUKSKeyslotState
    new_secret: str | None = None
    old_secret: str | None = None
    keyslot: Int | None = None
    iter_time: Int | None = None
    secret: str | None = None


class QCryptoBlockAmendOptions(Union, tag="format", tag_enum=QCryptoBlockFormat):
    """A change of how a block device is encrypted."""

    format: QCryptoBlockFormat


QCryptoBlockAmendOptions.add_branch("luks", QCryptoBlockAmendOptionsLUKS)


class BlockdevAmendOptionsQcow2(Struct):
    """What can be changed in an image that is open. encrypt: the key slots of an encrypted one."""

    encrypt: QCryptoBlockAmendOptions | None = None


class QCryptoCipherAlgorithm(Enum):
    """Ciphers."""

    __c_prefix__ = "QCRYPTO_CIPHER_ALG"

    AES_128 = "aes-128"
    AES_192 = "aes-192"
    AES_256 = "aes-256"
    DES = "des"
    DES3 = "3des"
    CAST5_128 = "cast5-128"
    SERPENT_128 = "serpent-128"
    SERPENT_192 = "serpent-192"
    SERPENT_256 = "serpent-256"
    TWOFISH_128 = "twofish-128"
    TWOFISH_192 = "twofish-192"
    TWOFISH_256 = "twofish-256"


class QCryptoCipherMode(Enum):
    """Modes of ciphers.

    ecb: every block by itself, unsafe
    cbc: chained blocks
    xts: made for disks
    ctr: a stream cipher
    """

    ECB = "ecb"
    CBC = "cbc"
    XTS = "xts"
    CTR = "ctr"


class QCryptoIVGenAlgorithm(Enum):
    """How initialisation vectors are made.

    plain: the sector's number in 32 bits
    plain64: the sector's number in 64 bits
    essiv: the sector's number, encrypted
    """

    PLAIN = "plain"
    PLAIN64 = "plain64"
    ESSIV = "essiv"


class QCryptoHashAlgorithm(Enum):
    """Hash functions."""

    MD5 = "md5"
    SHA1 = "sha1"
    SHA224 = "sha224"
    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"
    RIPEMD160 = "ripemd160"


class QCryptoBlockCreateOptionsLUKS(QCryptoBlockOptionsLUKS):
    """Parameters of a new LUKS header; iter_time in milliseconds."""

    cipher_alg: QCryptoCipherAlgorithm | None = None
    cipher_mode: QCryptoCipherMode | None = None
    ivgen_alg: QCryptoIVGenAlgorithm | None = None
    ivgen_hash_alg: QCryptoHashAlgorithm | None = None
    hash_alg: QCryptoHashAlgorithm | None = None
    iter_time: Int | None = None


class QCryptoBlockCreateOptions(Union, tag="format", tag_enum=QCryptoBlockFormat):
    """Encryption of a new image."""

    format: QCryptoBlockFormat


QCryptoBlockCreateOptions.add_branch("qcow", QCryptoBlockOptionsQCow)
QCryptoBlockCreateOptions.add_branch("luks", QCryptoBlockCreateOptionsLUKS)


class BlockdevCreateOptionsQcow2(Struct):
    """A new qcow2 image.

    file: node to make the image in. data_file: node for the guest's data. data_file_raw: keep the data file readable
    as a raw image. extended_l2: 32 subclusters a cluster. size: virtual size, bytes. version: default v3.
    backing_file, backing_fmt: what the header names. encrypt: encryption. cluster_size: bytes, default 65536.
    preallocation: default off. lazy_refcounts: default off. refcount_bits: default 16. compression_type: default
    zlib.
    """

    file: BlockdevRef
    data_file: BlockdevRef | None = None
    data_file_raw: bool | None = None
    extended_l2: bool | None = None
    size: Size
    version: BlockdevQcow2Version | None = None
    backing_file: str | None = None
    backing_fmt: Annotated[str | None, tag_enum("BlockdevDriver")] = None
    encrypt: QCryptoBlockCreateOptions | None = None
    cluster_size: Size | None = None
    preallocation: PreallocMode | None = None
    lazy_refcounts: bool | None = None
    refcount_bits: Int | None = None
    compression_type: Qcow2CompressionType | None = None


# -- query results -----------------------------------------------------------------------------------------------------


class Qcow2BitmapInfoFlags(Enum):
    """in-use: not stored properly; auto: recording."""

    IN_USE = "in-use"
    AUTO = "auto"


class Qcow2BitmapInfo(Struct):
    """A persistent bitmap of an image; granularity in bytes."""

    name: str
    granularity: UInt32
    flags: list[Qcow2BitmapInfoFlags]


class ImageInfoSpecificQCow2(Struct):
    """What a qcow2 image says of itself.

    compat: "0.10" for version 2, "1.1" for version 3. data_file: name of the external data file. corrupt: the image
    is marked so. refcount_bits: width of a refcount. bitmaps: persistent bitmaps.
    """

    compat: str
    data_file: str | None = None
    data_file_raw: bool | None = None
    extended_l2: bool | None = None
    lazy_refcounts: bool | None = None
    corrupt: bool | None = None
    refcount_bits: Int
    bitmaps: list[Qcow2BitmapInfo] | None = None
    compression_type: Qcow2CompressionType


__all__ = [
    "BlockdevCreateOptionsQcow2",
    "BlockdevOptions",
    "BlockdevOptionsQcow2",
    "BlockdevQcow2Version",
    "ImageInfoSpecificQCow2",
    "PreallocMode",
    "Qcow2BitmapInfo",
    "Qcow2BitmapInfoFlags",
    "Qcow2CompressionType",
]
