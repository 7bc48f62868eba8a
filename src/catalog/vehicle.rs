//! Codes of vehicles: trouble codes (ISO 15031-6, SAE J2012), UDS (ISO 14229-1), J1939-73 and CAN.

use super::{Description, Row, in_table};

const TROUBLE_CODE: &str = "SAE J2012 / ISO 15031-6";
const UDS: &str = "ISO 14229-1";
const J1939: &str = "SAE J1939-73";
const CAN: &str = "ISO 11898";

/// The first letter of a trouble code.
const SYSTEMS: [(&str, &str); 4] = [("P", "powertrain"), ("C", "chassis"), ("B", "body"), ("U", "network")];

/// The third character of a powertrain code that ISO and SAE define.
const SUBSYSTEMS: [(char, &str); 11] = [
    ('0', "fuel and air metering, auxiliary emission controls"),
    ('1', "fuel and air metering"),
    ('2', "fuel and air metering, injector circuit"),
    ('3', "ignition system or misfire"),
    ('4', "auxiliary emission controls"),
    ('5', "vehicle speed, idle control, auxiliary inputs"),
    ('6', "computer and output circuits"),
    ('7', "transmission"),
    ('8', "transmission"),
    ('9', "transmission"),
    ('A', "hybrid propulsion"),
];

/// Failure type bytes.
const FAILURE_TYPES: [(&str, &str); 72] = [
    ("00", "no sub type information"),
    ("01", "general electrical failure"),
    ("02", "general signal failure"),
    ("03", "FM or PWM failure"),
    ("04", "system internal failure"),
    ("05", "system programming failure"),
    ("06", "algorithm based failure"),
    ("07", "mechanical failure"),
    ("08", "bus signal or message failure"),
    ("09", "component failure"),
    ("11", "circuit short to ground"),
    ("12", "circuit short to battery"),
    ("13", "circuit open"),
    ("14", "circuit short to ground or open"),
    ("15", "circuit short to battery or open"),
    ("16", "circuit voltage below threshold"),
    ("17", "circuit voltage above threshold"),
    ("18", "circuit current below threshold"),
    ("19", "circuit current above threshold"),
    ("1A", "circuit resistance below threshold"),
    ("1B", "circuit resistance above threshold"),
    ("1C", "circuit voltage out of range"),
    ("1D", "circuit current out of range"),
    ("1E", "circuit resistance out of range"),
    ("1F", "circuit intermittent"),
    ("21", "signal amplitude below minimum"),
    ("22", "signal amplitude above maximum"),
    ("23", "signal stuck low"),
    ("24", "signal stuck high"),
    ("25", "signal shape or waveform failure"),
    ("26", "signal rate of change below threshold"),
    ("27", "signal rate of change above threshold"),
    ("28", "signal bias level out of range or zero adjustment failure"),
    ("29", "signal invalid"),
    ("2F", "signal erratic"),
    ("31", "no signal"),
    ("36", "signal frequency too low"),
    ("37", "signal frequency too high"),
    ("38", "signal frequency incorrect"),
    ("41", "general checksum failure"),
    ("42", "general memory failure"),
    ("43", "special memory failure"),
    ("44", "data memory failure"),
    ("45", "program memory failure"),
    ("46", "calibration or parameter memory failure"),
    ("47", "watchdog or safety microcontroller failure"),
    ("48", "supervision software failure"),
    ("49", "internal electronic failure"),
    ("4A", "incorrect component installed"),
    ("4B", "over temperature"),
    ("51", "not programmed"),
    ("52", "not activated"),
    ("53", "deactivated"),
    ("54", "missing calibration"),
    ("55", "not configured"),
    ("56", "invalid or incompatible configuration"),
    ("57", "invalid or incompatible software component"),
    ("61", "signal calculation failure"),
    ("62", "signal compare failure"),
    ("63", "circuit or component protection time-out"),
    ("64", "signal plausibility failure"),
    ("71", "actuator stuck"),
    ("72", "actuator stuck open"),
    ("73", "actuator stuck closed"),
    ("81", "invalid serial data received"),
    ("82", "alive or sequence counter incorrect or not updated"),
    ("83", "value of signal protection calculation incorrect"),
    ("84", "signal below allowable range"),
    ("85", "signal above allowable range"),
    ("86", "signal invalid"),
    ("87", "missing message"),
    ("88", "bus off"),
];

/// Services of UDS.
const SERVICES: [(&str, &str); 26] = [
    ("10", "DiagnosticSessionControl"),
    ("11", "ECUReset"),
    ("14", "ClearDiagnosticInformation"),
    ("19", "ReadDTCInformation"),
    ("22", "ReadDataByIdentifier"),
    ("23", "ReadMemoryByAddress"),
    ("24", "ReadScalingDataByIdentifier"),
    ("27", "SecurityAccess"),
    ("28", "CommunicationControl"),
    ("29", "Authentication"),
    ("2A", "ReadDataByPeriodicIdentifier"),
    ("2C", "DynamicallyDefineDataIdentifier"),
    ("2E", "WriteDataByIdentifier"),
    ("2F", "InputOutputControlByIdentifier"),
    ("31", "RoutineControl"),
    ("34", "RequestDownload"),
    ("35", "RequestUpload"),
    ("36", "TransferData"),
    ("37", "RequestTransferExit"),
    ("38", "RequestFileTransfer"),
    ("3D", "WriteMemoryByAddress"),
    ("3E", "TesterPresent"),
    ("83", "AccessTimingParameter"),
    ("84", "SecuredDataTransmission"),
    ("85", "ControlDTCSetting"),
    ("87", "LinkControl"),
];

/// Negative response codes of UDS.
const RESPONSES: [Row; 35] = [
    ("10", "generalReject", "", ""),
    (
        "11",
        "serviceNotSupported",
        "the control unit does not know the service in any session",
        "check the version of the control unit's software",
    ),
    ("12", "subFunctionNotSupported", "", ""),
    (
        "13",
        "incorrectMessageLengthOrInvalidFormat",
        "the request was built for another version of the control unit",
        "check the length of the request",
    ),
    ("14", "responseTooLong", "", ""),
    ("21", "busyRepeatRequest", "the control unit is busy", "repeat the request after a wait"),
    (
        "22",
        "conditionsNotCorrect",
        "the vehicle is not in a state that allows it: ignition, speed, gear or voltage",
        "bring the vehicle into the state that the procedure needs",
    ),
    ("24", "requestSequenceError", "a request was missing or repeated", "begin the sequence again"),
    (
        "25",
        "noResponseFromSubnetComponent",
        "a gateway could not reach the control unit behind it",
        "check the network behind the gateway",
    ),
    (
        "26",
        "failurePreventsExecutionOfRequestedAction",
        "a fault is stored in the control unit",
        "read its trouble codes first",
    ),
    (
        "31",
        "requestOutOfRange",
        "the identifier, address or value does not exist there",
        "check that the file fits the control unit",
    ),
    (
        "33",
        "securityAccessDenied",
        "the control unit was not unlocked",
        "unlock it with SecurityAccess or Authentication first",
    ),
    ("34", "authenticationRequired", "", "authenticate first"),
    ("35", "invalidKey", "the key does not fit the seed", "check the secret of the control unit's variant"),
    ("36", "exceedNumberOfAttempts", "too many wrong keys", "wait until the control unit allows another attempt"),
    (
        "37",
        "requiredTimeDelayNotExpired",
        "an attempt came too early after wrong ones",
        "wait until the delay has ended",
    ),
    (
        "70",
        "uploadDownloadNotAccepted",
        "the memory area does not accept the transfer",
        "check the address, the length and whether it was erased",
    ),
    ("71", "transferDataSuspended", "the transfer was interrupted", "begin the transfer again"),
    (
        "72",
        "generalProgrammingFailure",
        "erasing or writing the memory failed",
        "check voltage and temperature; repeated failures mean worn memory",
    ),
    ("73", "wrongBlockSequenceCounter", "a block was lost or repeated", "begin the transfer again"),
    (
        "78",
        "requestCorrectlyReceivedResponsePending",
        "the control unit needs more time",
        "wait for its final response",
    ),
    (
        "7E",
        "subFunctionNotSupportedInActiveSession",
        "the wrong session is active",
        "change to the session that the procedure needs",
    ),
    (
        "7F",
        "serviceNotSupportedInActiveSession",
        "the wrong session is active",
        "change to the session that the procedure needs",
    ),
    ("81", "rpmTooHigh", "", "stop the engine"),
    ("82", "rpmTooLow", "", ""),
    ("83", "engineIsRunning", "", "stop the engine"),
    ("84", "engineIsNotRunning", "", "start the engine"),
    ("85", "engineRunTimeTooLow", "", ""),
    ("86", "temperatureTooHigh", "", "let it cool down"),
    ("87", "temperatureTooLow", "", "let it warm up"),
    ("88", "vehicleSpeedTooHigh", "the vehicle moves", "stop the vehicle"),
    ("89", "vehicleSpeedTooLow", "", ""),
    ("8C", "transmissionRangeNotInNeutral", "", "shift to neutral"),
    ("92", "voltageTooHigh", "", "check the charger"),
    ("93", "voltageTooLow", "the battery is weak", "charge the battery, or connect a charger during the update"),
];

/// Failure mode identifiers of J1939.
const FAILURE_MODES: [(&str, &str); 23] = [
    ("0", "data valid but above normal, most severe"),
    ("1", "data valid but below normal, most severe"),
    ("2", "data erratic, intermittent or incorrect"),
    ("3", "voltage above normal, or shorted to high source"),
    ("4", "voltage below normal, or shorted to low source"),
    ("5", "current below normal or open circuit"),
    ("6", "current above normal or grounded circuit"),
    ("7", "mechanical system not responding or out of adjustment"),
    ("8", "abnormal frequency, pulse width or period"),
    ("9", "abnormal update rate"),
    ("10", "abnormal rate of change"),
    ("11", "root cause not known"),
    ("12", "bad intelligent device or component"),
    ("13", "out of calibration"),
    ("14", "special instructions"),
    ("15", "data valid but above normal, least severe"),
    ("16", "data valid but above normal, moderately severe"),
    ("17", "data valid but below normal, least severe"),
    ("18", "data valid but below normal, moderately severe"),
    ("19", "received network data in error"),
    ("20", "data drifted high"),
    ("21", "data drifted low"),
    ("31", "condition exists"),
];

const CAN_FAULTS: [Row; 3] = [
    (
        "CAN:BUSOFF",
        "the controller has left the CAN bus after too many errors",
        "a short circuit, a missing terminator, or another bit rate",
        "check the wiring and the bit rate",
    ),
    (
        "CAN:ERRORPASSIVE",
        "the CAN controller sees many errors and may no longer report them to others",
        "disturbed wiring",
        "check the wiring",
    ),
    (
        "CAN:ERRORFRAME",
        "a node has reported an error on the CAN bus",
        "disturbed wiring, or a node with another bit rate",
        "check the wiring and the bit rate",
    ),
];

pub fn describe(code: &str) -> Option<Description> {
    trouble_code(code).or_else(|| response(code)).or_else(|| failure_mode(code)).or_else(|| can(code))
}

pub fn listed() -> impl Iterator<Item = String> {
    let responses = RESPONSES.iter().map(|(response, ..)| format!("NRC:36-{response}"));
    responses.chain(CAN_FAULTS.iter().map(|(code, ..)| (*code).to_owned()))
}

fn named<'t>(table: &[(&str, &'t str)], name: &str) -> Option<&'t str> {
    table.iter().find(|(known, _)| *known == name).map(|(_, meaning)| *meaning)
}

/// `P0171-16`: the system, who defines it, the subsystem, the number, and the failure type.
fn trouble_code(code: &str) -> Option<Description> {
    let (number, failure) = code.split_once('-').map_or((code, None), |(number, failure)| (number, Some(failure)));
    let digits = number.get(1..)?;
    let is_number = number.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let system = named(&SYSTEMS, number.get(..1)?).filter(|_| is_number)?;
    let failure_type = match failure {
        Some(byte) => Some(named(&FAILURE_TYPES, byte).unwrap_or("a failure type of the manufacturer")),
        None => None,
    };
    // SAE J2012: P2 and P34 to P39 are defined by the standard too, other codes with 1 to 3 by manufacturers.
    let is_standard = match (system, &digits[..1]) {
        (_, "0") | ("powertrain", "2") => true,
        ("powertrain" | "network", "3") => digits[1..2] >= *"4",
        _ => false,
    };
    let by = if is_standard { "defined by ISO/SAE" } else { "defined by the manufacturer" };
    let subsystem = digits.chars().nth(1).filter(|_| system == "powertrain" && is_standard);
    let subsystem = subsystem.and_then(|digit| SUBSYSTEMS.iter().find(|(known, _)| *known == digit));
    let mut meaning = format!("a {system} trouble code, {by}");
    if let Some((_, subsystem)) = subsystem {
        meaning += &format!(": {subsystem}");
    }
    if let Some(failure_type) = failure_type {
        meaning += &format!("; {failure_type}");
    }
    Some(Description::new(code, TROUBLE_CODE, meaning))
}

/// `NRC:36-72`: the service, and why it was refused.
fn response(code: &str) -> Option<Description> {
    let (service, response) = code.strip_prefix("NRC:")?.split_once('-')?;
    let mut description = in_table(&RESPONSES, response, code, UDS)?;
    let service = named(&SERVICES, service).map_or_else(|| format!("service 0x{service}"), str::to_owned);
    description.meaning = format!("{service} was refused: {}", description.meaning);
    Some(description)
}

/// `SPN190-FMI2`: a parameter, and how it fails.
fn failure_mode(code: &str) -> Option<Description> {
    let (parameter, mode) = code.strip_prefix("SPN")?.split_once("-FMI")?;
    let meaning = named(&FAILURE_MODES, mode)?;
    Some(Description::new(code, J1939, format!("suspect parameter {parameter}: {meaning}")))
}

fn can(code: &str) -> Option<Description> {
    in_table(&CAN_FAULTS, code, code, CAN)
}
