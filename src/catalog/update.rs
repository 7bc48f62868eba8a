//! Codes of updaters and boot loaders: Android's update_engine, ESP32 resets, faults of Android and ESP-IDF.

use super::{Description, Row, in_table};

const UPDATE_ENGINE: &str = "Android update_engine";
const ESP: &str = "ESP-IDF";
const ANDROID: &str = "Android";

/// ErrorCode of update_engine.
const ERROR_CODES: [Row; 32] = [
    ("kError", "the update has failed", "", "read the lines before it"),
    (
        "kOmahaRequestError",
        "the request to the update server failed",
        "no network, or the server refuses it",
        "check the network and the server",
    ),
    ("kOmahaResponseHandlerError", "the answer of the update server could not be used", "", ""),
    (
        "kFilesystemCopierError",
        "a partition could not be copied",
        "the storage has failed",
        "check the health of the storage",
    ),
    ("kPostinstallRunnerError", "the postinstall program has failed", "", "read its output in the log"),
    (
        "kPayloadMismatchedType",
        "the payload is of another type than expected",
        "a full payload in place of a delta, or the reverse",
        "publish the right payload",
    ),
    (
        "kInstallDeviceOpenError",
        "the target partition could not be opened",
        "it is missing or mounted",
        "check the partition table",
    ),
    ("kKernelDeviceOpenError", "the kernel partition could not be opened", "", "check the partition table"),
    (
        "kDownloadTransferError",
        "the download of the payload failed",
        "the connection broke, or the server refused it",
        "check the network; the download continues on the next attempt",
    ),
    (
        "kPayloadHashMismatchError",
        "the payload is damaged: its hash is wrong",
        "a damaged download, or a wrong file on the server",
        "download it again; check the published file",
    ),
    (
        "kPayloadSizeMismatchError",
        "the payload has another size than announced",
        "a wrong file on the server",
        "check the published file",
    ),
    (
        "kDownloadPayloadVerificationError",
        "the signature of the payload is wrong",
        "it was signed with another key",
        "sign it with the key that the device knows",
    ),
    ("kDownloadNewPartitionInfoError", "the payload does not describe its partitions", "", "build the payload again"),
    (
        "kDownloadWriteError",
        "the payload could not be written",
        "the storage is full or has failed",
        "check free space and the health of the storage",
    ),
    (
        "kNewRootfsVerificationError",
        "the new system partition could not be verified",
        "it was written wrongly",
        "repeat the update; check the health of the storage",
    ),
    (
        "kNewKernelVerificationError",
        "the new kernel could not be verified",
        "it was written wrongly",
        "repeat the update; check the health of the storage",
    ),
    (
        "kSignedDeltaPayloadExpectedError",
        "a signed payload was expected",
        "the payload is not signed",
        "sign the payload",
    ),
    (
        "kDownloadPayloadPubKeyVerificationError",
        "the signature of the payload does not fit the public key of the device",
        "it was signed with another key",
        "sign it with the key that the device knows",
    ),
    (
        "kDownloadStateInitializationError",
        "a partition of the running system is not the one that the delta expects",
        "the device has another version, or its system was changed",
        "send a full payload",
    ),
    (
        "kDownloadInvalidMetadataMagicString",
        "the payload does not begin as a payload does",
        "a wrong file on the server",
        "check the published file",
    ),
    (
        "kDownloadSignatureMissingInManifest",
        "the manifest has no signature",
        "the payload is not signed",
        "sign the payload",
    ),
    (
        "kDownloadManifestParseError",
        "the manifest of the payload cannot be read",
        "a damaged or newer payload",
        "build the payload for this version of the updater",
    ),
    (
        "kDownloadMetadataSignatureError",
        "the signature of the manifest is wrong",
        "it was signed with another key",
        "sign it with the key that the device knows",
    ),
    ("kDownloadOperationHashMismatch", "a part of the payload is damaged", "a damaged download", "download it again"),
    (
        "kDownloadOperationExecutionError",
        "a part of the payload could not be applied",
        "the source partition differs, or the storage has failed",
        "send a full payload; check the health of the storage",
    ),
    (
        "kUnsupportedMajorPayloadVersion",
        "the payload is of a newer version than the updater",
        "",
        "build the payload for this version of the updater",
    ),
    (
        "kUnsupportedMinorPayloadVersion",
        "the delta is of another version than the updater",
        "",
        "build the payload for this version of the updater",
    ),
    (
        "kPayloadTimestampError",
        "the payload is older than the running system",
        "a downgrade",
        "allow the downgrade, or send a newer payload",
    ),
    ("kUpdatedButNotActive", "the update is installed but its slot is not active", "", "activate the slot"),
    ("kNotEnoughSpace", "there is not enough space for the update", "the data partition is full", "free space"),
    ("kDeviceCorrupted", "the device is damaged", "dm-verity found damaged blocks", "repair it with a full update"),
    (
        "kRollbackNotPossible",
        "the device cannot go back to an earlier version",
        "its rollback protection is newer",
        "send a newer version",
    ),
];

const RESETS: [Row; 14] = [
    ("SW_RESET", "the software has reset the chip", "", ""),
    ("SW_CPU_RESET", "the software has reset a processor", "", ""),
    ("OWDT_RESET", "the old watchdog has reset the chip", "the program does not respond", "see what blocks it"),
    ("SDIO_RESET", "the SDIO interface has reset the chip", "", ""),
    (
        "TG0WDT_SYS_RESET",
        "the watchdog of timer group 0 has reset the chip",
        "a task does not respond, or interrupts are off for too long",
        "see what blocks it",
    ),
    (
        "TG1WDT_SYS_RESET",
        "the watchdog of timer group 1 has reset the chip",
        "interrupts are off for too long",
        "see what blocks it",
    ),
    (
        "RTCWDT_SYS_RESET",
        "the watchdog of the real-time clock has reset the chip",
        "the boot loader or the program does not respond",
        "check flash, power and the boot log",
    ),
    ("INTRUSION_RESET", "an intrusion test has reset a processor", "", ""),
    (
        "TGWDT_CPU_RESET",
        "the watchdog of a timer group has reset a processor",
        "a task does not respond",
        "see what blocks it",
    ),
    ("RTCWDT_CPU_RESET", "the watchdog of the real-time clock has reset a processor", "", "see what blocks it"),
    ("EXT_CPU_RESET", "the other processor has reset this one", "", ""),
    (
        "RTCWDT_BROWN_OUT_RESET",
        "the supply voltage was too low",
        "a weak supply, or a load that is too high",
        "check the supply",
    ),
    (
        "RTCWDT_RTC_RESET",
        "the watchdog of the real-time clock has reset the chip and the clock",
        "the program does not start",
        "check flash, power and the boot log",
    ),
    ("DEEPSLEEP_RESET", "the chip woke up from deep sleep", "", ""),
];

const FAULTS: [(Row, &str); 3] = [
    (
        (
            "ESP:PANIC",
            "the program has stopped by an unhandled exception",
            "a fault of the program",
            "decode the stack trace",
        ),
        ESP,
    ),
    (
        (
            "ANDROID:FATAL_EXCEPTION",
            "an app has ended by an unhandled exception",
            "a fault of the app",
            "read the stack trace",
        ),
        ANDROID,
    ),
    (
        ("ANDROID:ANR", "an app does not respond", "its main thread is blocked", "read the traces of its threads"),
        ANDROID,
    ),
];

pub fn describe(code: &str) -> Option<Description> {
    let fault = FAULTS.iter().find(|((known, ..), _)| *known == code);
    let fault =
        fault.map(|((_, meaning, cause, remedy), source)| Description::new(code, source, *meaning).with(cause, remedy));
    fault
        .or_else(|| in_table(&RESETS, code.strip_prefix("RST:")?, code, ESP))
        .or_else(|| in_table(&ERROR_CODES, code, code, UPDATE_ENGINE))
}

pub fn listed() -> impl Iterator<Item = String> {
    let errors = ERROR_CODES.iter().map(|(code, ..)| (*code).to_owned());
    let resets = RESETS.iter().map(|(code, ..)| format!("RST:{code}"));
    errors.chain(resets).chain(FAULTS.iter().map(|((code, ..), _)| (*code).to_owned()))
}
