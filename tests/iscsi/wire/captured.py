"""PDUs captured on loopback between libiscsi 1.19 (iscsi-ls, iscsi-inq, qemu-io) and tgtd 1.0.85.
The fields beside each are what Wireshark's dissector says of it, so they are independent of us.
"""

from iscsi.wire.bhs import Opcode

LOGIN_REQUEST = bytes.fromhex(
    "438700000000018b80e4d986000000006b48f7770000000027ed632e00000001"
    "00000000000000000000000000000000"
    "496e69746961746f724e616d653d69716e2e323030372d31302e636f6d2e6769746875623a7361686c626572673a"
    "6c696269736373693a69736373692d6c730053657373696f6e547970653d446973636f7665727900486561646572"
    "4469676573743d4e6f6e6500446174614469676573743d4e6f6e6500496e697469616c5232543d4e6f00496d6d65"
    "6469617465446174613d596573004d617842757273744c656e6774683d3236323134340046697273744275727374"
    "4c656e6774683d3236323134340044656661756c7454696d6532576169743d320044656661756c7454696d653252"
    "657461696e3d30004d61784f75747374616e64696e675232543d31004572726f725265636f766572794c6576656c"
    "3d300049464d61726b65723d4e6f004f464d61726b65723d4e6f004d6178436f6e6e656374696f6e733d31004d61"
    "7852656376446174615365676d656e744c656e6774683d3236323134340044617461504455496e4f726465723d59"
    "6573004461746153657175656e6365496e4f726465723d5965730000"
)
LOGIN_RESPONSE = bytes.fromhex(
    "238700000000012c80e4d986000001006b48f777000000000000000027ed632e"
    "27ed632f000000000000000000000000"
    "546172676574506f7274616c47726f75705461673d31004865616465724469676573743d4e6f6e65004461746144"
    "69676573743d4e6f6e6500496e697469616c5232543d59657300496d6d656469617465446174613d596573004d61"
    "7842757273744c656e6774683d32363231343400466972737442757273744c656e6774683d363535333600446566"
    "61756c7454696d6532576169743d320044656661756c7454696d653252657461696e3d30004d61784f7574737461"
    "6e64696e675232543d31004572726f725265636f766572794c6576656c3d300049464d61726b65723d4e6f004f46"
    "4d61726b65723d4e6f004d6178436f6e6e656374696f6e733d310044617461504455496e4f726465723d59657300"
    "4461746153657175656e6365496e4f726465723d59657300"
)
TEXT_REQUEST = bytes.fromhex(
    "448000000000001000000000000000006b48f778ffffffff27ed632e00000001"
    "00000000000000000000000000000000"
    "53656e64546172676574733d416c6c00"
)
TEXT_RESPONSE = bytes.fromhex(
    "248000000000004400000000000000006b48f778ffffffff0000000127ed632e"
    "27ed632f000000000000000000000000"
    "5461726765744e616d653d69716e2e323032362d30312e6578616d706c653a6469736b0054617267657441646472"
    "6573733d3132372e302e302e313a34313539352c3100"
)
CHECK_CONDITION = bytes.fromhex(
    "21800002000000140000000000000000521d695d00000000000000033ef9cde6"
    "3ef9ce66000000000000000000000000"
    "0012700006000000000a00000000290000000000"
)
DATA_IN = bytes.fromhex(
    "258300000000000a000000000000000072282c9affffffff000000034f5d44c3"
    "4f5d4543000000000000000000000036"
    "00000006008083b0b1b20000"
)
WRITE_COMMAND = bytes.fromhex(
    "01a100000000200000010000000000003cf0a95600003000384e813a0000000c"
    "2a080000000000001800000000000000"
)
R2T = bytes.fromhex(
    "318000000000000000010000000000003cf0a956e04cbc970000000c384e813b"
    "384e81bb000000000000200000001000"
)
DATA_OUT = bytes.fromhex(
    "058000000000100000010000000000003cf0a956e04cbc97000000000000000d"
    "00000000000000000000200000000000"
)
LOGOUT_REQUEST = bytes.fromhex(
    "468000000000000000000000000000003cf0a95900000000384e813d0000000f"
    "00000000000000000000000000000000"
)
LOGOUT_RESPONSE = bytes.fromhex(
    "268000000000000000000000000000003cf0a959000000000000000f384e813d"
    "384e81bd000000000000000000000000"
)

DISSECTED = [
    (
        LOGIN_REQUEST,
        Opcode.LOGIN_REQUEST,
        {
            "immediate": 1,
            "transit": 1,
            "continued": 0,
            "csg": 1,
            "nsg": 3,
            "version_max": 0,
            "version_min": 0,
            "data_segment_length": 395,
            "isid": 0x80E4D9860000,
            "tsih": 0,
            "itt": 0x6B48F777,
            "cid": 0,
            "cmd_sn": 669868846,
            "exp_stat_sn": 1,
        },
    ),
    (
        LOGIN_RESPONSE,
        Opcode.LOGIN_RESPONSE,
        {
            "transit": 1,
            "csg": 1,
            "nsg": 3,
            "data_segment_length": 300,
            "isid": 0x80E4D9860000,
            "tsih": 0x0100,
            "itt": 0x6B48F777,
            "stat_sn": 0,
            "exp_cmd_sn": 669868846,
            "max_cmd_sn": 669868847,
            "status_class": 0,
            "status_detail": 0,
        },
    ),
    (
        TEXT_REQUEST,
        Opcode.TEXT_REQUEST,
        {
            "immediate": 1,
            "final": 1,
            "continued": 0,
            "data_segment_length": 16,
            "itt": 0x6B48F778,
            "ttt": 0xFFFFFFFF,
            "cmd_sn": 669868846,
            "exp_stat_sn": 1,
        },
    ),
    (
        TEXT_RESPONSE,
        Opcode.TEXT_RESPONSE,
        {
            "final": 1,
            "data_segment_length": 68,
            "itt": 0x6B48F778,
            "ttt": 0xFFFFFFFF,
            "stat_sn": 1,
            "exp_cmd_sn": 669868846,
            "max_cmd_sn": 669868847,
        },
    ),
    (
        CHECK_CONDITION,
        Opcode.SCSI_RESPONSE,
        {
            "response": 0,
            "status": 2,
            "data_segment_length": 20,
            "itt": 0x521D695D,
            "stat_sn": 3,
            "exp_cmd_sn": 1056558566,
            "max_cmd_sn": 1056558694,
            "exp_data_sn": 0,
            "bidi_residual_count": 0,
            "residual_count": 0,
        },
    ),
    (
        DATA_IN,
        Opcode.DATA_IN,
        {
            "final": 1,
            "acknowledge": 0,
            "overflow": 0,
            "underflow": 1,
            "has_status": 1,
            "status": 0,
            "data_segment_length": 10,
            "itt": 0x72282C9A,
            "stat_sn": 3,
            "exp_cmd_sn": 1331512515,
            "max_cmd_sn": 1331512643,
            "data_sn": 0,
            "buffer_offset": 0,
            "residual_count": 54,
        },
    ),
    (
        WRITE_COMMAND,
        Opcode.SCSI_COMMAND,
        {
            "immediate": 0,
            "final": 1,
            "read": 0,
            "write": 1,
            "attribute": 1,
            "data_segment_length": 8192,
            "lun": 1 << 48,
            "itt": 0x3CF0A956,
            "expected_data_transfer_length": 12288,
            "cmd_sn": 944668986,
            "exp_stat_sn": 12,
        },
    ),
    (
        R2T,
        Opcode.R2T,
        {
            "lun": 1 << 48,
            "itt": 0x3CF0A956,
            "ttt": 0xE04CBC97,
            "stat_sn": 12,
            "exp_cmd_sn": 944668987,
            "max_cmd_sn": 944669115,
            "r2t_sn": 0,
            "buffer_offset": 8192,
            "desired_data_transfer_length": 4096,
        },
    ),
    (
        DATA_OUT,
        Opcode.DATA_OUT,
        {
            "final": 1,
            "data_segment_length": 4096,
            "lun": 1 << 48,
            "itt": 0x3CF0A956,
            "ttt": 0xE04CBC97,
            "exp_stat_sn": 13,
            "data_sn": 0,
            "buffer_offset": 8192,
        },
    ),
    (
        LOGOUT_REQUEST,
        Opcode.LOGOUT_REQUEST,
        {
            "immediate": 1,
            "logout_reason": 0,
            "itt": 0x3CF0A959,
            "cid": 0,
            "cmd_sn": 944668989,
            "exp_stat_sn": 15,
        },
    ),
    (
        LOGOUT_RESPONSE,
        Opcode.LOGOUT_RESPONSE,
        {
            "response": 0,
            "itt": 0x3CF0A959,
            "stat_sn": 15,
            "exp_cmd_sn": 944668989,
            "max_cmd_sn": 944669117,
            "time2wait": 0,
            "time2retain": 0,
        },
    ),
]
