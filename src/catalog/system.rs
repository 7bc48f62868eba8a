//! Codes of operating systems and protocols: errno, signals, exit codes (POSIX, Linux), HTTP (RFC 9110), HRESULT and
//! NTSTATUS (MS-ERREF), kernel faults.

use super::{Description, Row, in_table};

const LINUX: &str = "Linux";
const HTTP: &str = "RFC 9110";
const WINDOWS: &str = "MS-ERREF";

/// errno of Linux: the number, its name, its text, its usual cause and what to do.
const ERRNO: [(u32, &str, &str, &str, &str); 130] = [
    (1, "EPERM", "Operation not permitted", "", "check the rights of the process"),
    (2, "ENOENT", "No such file or directory", "a file or folder is missing", "check the path"),
    (3, "ESRCH", "No such process", "", ""),
    (4, "EINTR", "Interrupted system call", "", ""),
    (
        5,
        "EIO",
        "Input/output error",
        "the storage or a device has failed",
        "check the kernel log and the health of the storage",
    ),
    (6, "ENXIO", "No such device or address", "a device is missing", "check the device"),
    (7, "E2BIG", "Argument list too long", "", ""),
    (8, "ENOEXEC", "Exec format error", "", ""),
    (9, "EBADF", "Bad file descriptor", "", ""),
    (10, "ECHILD", "No child processes", "", ""),
    (11, "EAGAIN", "Resource temporarily unavailable", "the resource is busy", "repeat it later"),
    (12, "ENOMEM", "Cannot allocate memory", "the memory is used up", "find what uses it; add memory or limit it"),
    (13, "EACCES", "Permission denied", "the rights of a file or folder", "check owner and mode"),
    (14, "EFAULT", "Bad address", "", ""),
    (15, "ENOTBLK", "Block device required", "", ""),
    (16, "EBUSY", "Device or resource busy", "something still uses the device or mount", "end what uses it"),
    (17, "EEXIST", "File exists", "", "remove the old file first"),
    (18, "EXDEV", "Invalid cross-device link", "", ""),
    (19, "ENODEV", "No such device", "a device is missing, or its driver", "check the device and its driver"),
    (20, "ENOTDIR", "Not a directory", "", ""),
    (21, "EISDIR", "Is a directory", "", ""),
    (22, "EINVAL", "Invalid argument", "an argument is not valid; often another version of an interface", ""),
    (
        23,
        "ENFILE",
        "Too many open files in system",
        "the system has too many open files",
        "find the process that leaks them",
    ),
    (24, "EMFILE", "Too many open files", "the process has too many open files", "raise the limit, or find the leak"),
    (25, "ENOTTY", "Inappropriate ioctl for device", "", ""),
    (26, "ETXTBSY", "Text file busy", "", ""),
    (27, "EFBIG", "File too large", "the file is larger than the file system or a limit allows", ""),
    (28, "ENOSPC", "No space left on device", "the file system is full", "free space, or make the partition larger"),
    (29, "ESPIPE", "Illegal seek", "", ""),
    (
        30,
        "EROFS",
        "Read-only file system",
        "the file system is mounted read-only, often after an error",
        "check the kernel log; mount it for writing",
    ),
    (31, "EMLINK", "Too many links", "", ""),
    (32, "EPIPE", "Broken pipe", "the reader has ended", "see why the other process ended"),
    (33, "EDOM", "Numerical argument out of domain", "", ""),
    (34, "ERANGE", "Numerical result out of range", "", ""),
    (35, "EDEADLOCK", "Resource deadlock avoided", "", ""),
    (36, "ENAMETOOLONG", "File name too long", "", ""),
    (37, "ENOLCK", "No locks available", "", ""),
    (38, "ENOSYS", "Function not implemented", "", ""),
    (39, "ENOTEMPTY", "Directory not empty", "", ""),
    (40, "ELOOP", "Too many levels of symbolic links", "", ""),
    (42, "ENOMSG", "No message of desired type", "", ""),
    (43, "EIDRM", "Identifier removed", "", ""),
    (44, "ECHRNG", "Channel number out of range", "", ""),
    (45, "EL2NSYNC", "Level 2 not synchronized", "", ""),
    (46, "EL3HLT", "Level 3 halted", "", ""),
    (47, "EL3RST", "Level 3 reset", "", ""),
    (48, "ELNRNG", "Link number out of range", "", ""),
    (49, "EUNATCH", "Protocol driver not attached", "", ""),
    (50, "ENOCSI", "No CSI structure available", "", ""),
    (51, "EL2HLT", "Level 2 halted", "", ""),
    (52, "EBADE", "Invalid exchange", "", ""),
    (53, "EBADR", "Invalid request descriptor", "", ""),
    (54, "EXFULL", "Exchange full", "", ""),
    (55, "ENOANO", "No anode", "", ""),
    (56, "EBADRQC", "Invalid request code", "", ""),
    (57, "EBADSLT", "Invalid slot", "", ""),
    (59, "EBFONT", "Bad font file format", "", ""),
    (60, "ENOSTR", "Device not a stream", "", ""),
    (61, "ENODATA", "No data available", "", ""),
    (62, "ETIME", "Timer expired", "", ""),
    (63, "ENOSR", "Out of streams resources", "", ""),
    (64, "ENONET", "Machine is not on the network", "", ""),
    (65, "ENOPKG", "Package not installed", "", ""),
    (66, "EREMOTE", "Object is remote", "", ""),
    (67, "ENOLINK", "Link has been severed", "", ""),
    (68, "EADV", "Advertise error", "", ""),
    (69, "ESRMNT", "Srmount error", "", ""),
    (70, "ECOMM", "Communication error on send", "", ""),
    (71, "EPROTO", "Protocol error", "", ""),
    (72, "EMULTIHOP", "Multihop attempted", "", ""),
    (73, "EDOTDOT", "RFS specific error", "", ""),
    (74, "EBADMSG", "Bad message", "the data is damaged", "transfer it again; check the storage"),
    (75, "EOVERFLOW", "Value too large for defined data type", "", ""),
    (76, "ENOTUNIQ", "Name not unique on network", "", ""),
    (77, "EBADFD", "File descriptor in bad state", "", ""),
    (78, "EREMCHG", "Remote address changed", "", ""),
    (79, "ELIBACC", "Can not access a needed shared library", "", ""),
    (80, "ELIBBAD", "Accessing a corrupted shared library", "", ""),
    (81, "ELIBSCN", ".lib section in a.out corrupted", "", ""),
    (82, "ELIBMAX", "Attempting to link in too many shared libraries", "", ""),
    (83, "ELIBEXEC", "Cannot exec a shared library directly", "", ""),
    (84, "EILSEQ", "Invalid or incomplete multibyte or wide character", "", ""),
    (85, "ERESTART", "Interrupted system call should be restarted", "", ""),
    (86, "ESTRPIPE", "Streams pipe error", "", ""),
    (87, "EUSERS", "Too many users", "", ""),
    (88, "ENOTSOCK", "Socket operation on non-socket", "", ""),
    (89, "EDESTADDRREQ", "Destination address required", "", ""),
    (90, "EMSGSIZE", "Message too long", "", ""),
    (91, "EPROTOTYPE", "Protocol wrong type for socket", "", ""),
    (92, "ENOPROTOOPT", "Protocol not available", "", ""),
    (93, "EPROTONOSUPPORT", "Protocol not supported", "", ""),
    (94, "ESOCKTNOSUPPORT", "Socket type not supported", "", ""),
    (95, "ENOTSUP", "Operation not supported", "", ""),
    (96, "EPFNOSUPPORT", "Protocol family not supported", "", ""),
    (97, "EAFNOSUPPORT", "Address family not supported by protocol", "", ""),
    (98, "EADDRINUSE", "Address already in use", "", ""),
    (99, "EADDRNOTAVAIL", "Cannot assign requested address", "", ""),
    (100, "ENETDOWN", "Network is down", "", ""),
    (101, "ENETUNREACH", "Network is unreachable", "there is no network", "check the network"),
    (102, "ENETRESET", "Network dropped connection on reset", "", ""),
    (103, "ECONNABORTED", "Software caused connection abort", "", ""),
    (
        104,
        "ECONNRESET",
        "Connection reset by peer",
        "the other side or a device between them has ended the connection",
        "repeat the request",
    ),
    (105, "ENOBUFS", "No buffer space available", "", ""),
    (106, "EISCONN", "Transport endpoint is already connected", "", ""),
    (107, "ENOTCONN", "Transport endpoint is not connected", "", ""),
    (108, "ESHUTDOWN", "Cannot send after transport endpoint shutdown", "", ""),
    (109, "ETOOMANYREFS", "Too many references: cannot splice", "", ""),
    (
        110,
        "ETIMEDOUT",
        "Connection timed out",
        "the other side does not answer",
        "check the network, and the other side",
    ),
    (111, "ECONNREFUSED", "Connection refused", "nothing listens at the address", "check that the service runs"),
    (112, "EHOSTDOWN", "Host is down", "", ""),
    (113, "EHOSTUNREACH", "No route to host", "there is no route to the host", "check the network"),
    (114, "EALREADY", "Operation already in progress", "", ""),
    (115, "EINPROGRESS", "Operation now in progress", "", ""),
    (116, "ESTALE", "Stale file handle", "a file on a network file system has gone", "mount it again"),
    (117, "EUCLEAN", "Structure needs cleaning", "the file system is damaged", "check the file system"),
    (118, "ENOTNAM", "Not a XENIX named type file", "", ""),
    (119, "ENAVAIL", "No XENIX semaphores available", "", ""),
    (120, "EISNAM", "Is a named type file", "", ""),
    (121, "EREMOTEIO", "Remote I/O error", "", ""),
    (122, "EDQUOT", "Disk quota exceeded", "the quota is used up", "free space, or raise the quota"),
    (123, "ENOMEDIUM", "No medium found", "", ""),
    (124, "EMEDIUMTYPE", "Wrong medium type", "", ""),
    (125, "ECANCELED", "Operation canceled", "", ""),
    (126, "ENOKEY", "Required key not available", "the key that is needed is not there", "install the key"),
    (127, "EKEYEXPIRED", "Key has expired", "a certificate has expired", "renew it; check the clock"),
    (128, "EKEYREVOKED", "Key has been revoked", "", ""),
    (
        129,
        "EKEYREJECTED",
        "Key was rejected by service",
        "a signature or key was not accepted",
        "check the signature and the keys of the device",
    ),
    (130, "EOWNERDEAD", "Owner died", "", ""),
    (131, "ENOTRECOVERABLE", "State not recoverable", "", ""),
    (132, "ERFKILL", "Operation not possible due to RF-kill", "", ""),
];

const STATUSES: [Row; 40] = [
    ("400", "Bad Request", "the request is malformed", ""),
    ("401", "Unauthorized", "credentials are missing or expired", "check the token or certificate of the device"),
    ("402", "Payment Required", "", ""),
    ("403", "Forbidden", "the server refuses the device", "check the rights of the device"),
    ("404", "Not Found", "the file or path is not on the server", "check that the artifact is published"),
    ("405", "Method Not Allowed", "", ""),
    ("406", "Not Acceptable", "", ""),
    ("407", "Proxy Authentication Required", "", ""),
    ("408", "Request Timeout", "the connection is too slow", ""),
    ("409", "Conflict", "", ""),
    ("410", "Gone", "the file was removed", "publish it again"),
    ("411", "Length Required", "", ""),
    ("412", "Precondition Failed", "", ""),
    ("413", "Request Entity Too Large", "the upload is larger than the server allows", ""),
    ("414", "Request-URI Too Long", "", ""),
    ("415", "Unsupported Media Type", "", ""),
    (
        "416",
        "Requested Range Not Satisfiable",
        "the server cannot continue the download at that offset",
        "begin the download again",
    ),
    ("417", "Expectation Failed", "", ""),
    ("418", "I'm a Teapot", "", ""),
    ("421", "Misdirected Request", "", ""),
    ("422", "Unprocessable Entity", "", ""),
    ("423", "Locked", "", ""),
    ("424", "Failed Dependency", "", ""),
    ("425", "Too Early", "", ""),
    ("426", "Upgrade Required", "", ""),
    ("428", "Precondition Required", "", ""),
    ("429", "Too Many Requests", "too many requests", "repeat later; spread the roll-out"),
    ("431", "Request Header Fields Too Large", "", ""),
    ("451", "Unavailable For Legal Reasons", "", ""),
    ("500", "Internal Server Error", "the server has failed", "check the server's log"),
    ("501", "Not Implemented", "", ""),
    ("502", "Bad Gateway", "a proxy cannot reach the server behind it", "check the server"),
    ("503", "Service Unavailable", "the server is overloaded or in maintenance", "repeat later; spread the roll-out"),
    ("504", "Gateway Timeout", "a proxy got no answer in time", "check the server"),
    ("505", "HTTP Version Not Supported", "", ""),
    ("506", "Variant Also Negotiates", "", ""),
    ("507", "Insufficient Storage", "", ""),
    ("508", "Loop Detected", "", ""),
    ("510", "Not Extended", "", ""),
    ("511", "Network Authentication Required", "", ""),
];

const SIGNALS: [Row; 18] = [
    ("HUP", "the terminal or the parent process has ended", "", ""),
    ("INT", "interrupted from the keyboard", "", ""),
    ("QUIT", "quit from the keyboard", "", ""),
    (
        "ILL",
        "an illegal instruction",
        "a program for another processor, or damaged memory",
        "check that the build fits the processor",
    ),
    ("TRAP", "a breakpoint or a failed assertion", "an assertion of the program failed", "read the lines before it"),
    ("ABRT", "the program has ended itself", "an assertion failed, or memory was corrupt", "read the lines before it"),
    (
        "BUS",
        "an access to memory that does not exist",
        "a mapped file was shortened, or the storage failed",
        "check the storage",
    ),
    ("FPE", "an arithmetic error, for example a division by zero", "a fault of the program", ""),
    (
        "KILL",
        "the process was killed",
        "the kernel was out of memory, or a watchdog or an operator killed it",
        "check the kernel log for out of memory",
    ),
    ("USR1", "a signal of the user", "", ""),
    ("SEGV", "an access to memory that is not the process's own", "a fault of the program", "collect the core dump"),
    ("USR2", "a signal of the user", "", ""),
    ("PIPE", "a write to a pipe without a reader", "the reader has ended", "see why the other process ended"),
    ("ALRM", "a timer has run out", "", ""),
    ("TERM", "a request to end", "", ""),
    ("XCPU", "the limit of processor time is used up", "", "raise the limit, or find the loop"),
    ("XFSZ", "the limit of the file size is reached", "", "raise the limit, or rotate the file"),
    ("SYS", "a forbidden system call", "a seccomp filter does not know the call", "update the filter"),
];

/// The numbers of signals on Linux (x86-64, ARM) that exit codes above 128 tell.
const SIGNAL_NUMBERS: [(u32, &str); 18] = [
    (1, "HUP"),
    (2, "INT"),
    (3, "QUIT"),
    (4, "ILL"),
    (5, "TRAP"),
    (6, "ABRT"),
    (7, "BUS"),
    (8, "FPE"),
    (9, "KILL"),
    (10, "USR1"),
    (11, "SEGV"),
    (12, "USR2"),
    (13, "PIPE"),
    (14, "ALRM"),
    (15, "TERM"),
    (24, "XCPU"),
    (25, "XFSZ"),
    (31, "SYS"),
];

const EXITS: [Row; 5] = [
    ("1", "the program has failed", "", "read the lines before it"),
    ("2", "the program was called with wrong arguments, or has failed", "", "read the lines before it"),
    (
        "126",
        "the command cannot be executed",
        "it is not executable, or for another processor",
        "check its mode and format",
    ),
    ("127", "the command was not found", "it is not installed, or not in the path", "check that it is installed"),
    ("255", "the program has failed, or a status is out of range", "", "read the lines before it"),
];

/// HRESULT and NTSTATUS values that updates of Windows systems report.
const KNOWN_RESULTS: [Row; 14] = [
    ("0x80004005", "E_FAIL: an unspecified failure", "", "read the lines before it"),
    ("0x80070002", "ERROR_FILE_NOT_FOUND: a file is missing", "", ""),
    ("0x80070005", "ERROR_ACCESS_DENIED: access was denied", "the rights of a file or key", "check owner and rights"),
    ("0x8007000D", "ERROR_INVALID_DATA: the data is invalid", "a damaged package", "download the package again"),
    ("0x8007000E", "ERROR_OUTOFMEMORY: out of memory", "", ""),
    ("0x80070020", "ERROR_SHARING_VIOLATION: another process uses the file", "often a virus scanner", "repeat it"),
    ("0x80070057", "ERROR_INVALID_PARAMETER: an argument is not valid", "", ""),
    ("0x80070070", "ERROR_DISK_FULL: the disk is full", "", "free space"),
    (
        "0x800F081F",
        "CBS_E_SOURCE_MISSING: files for a repair are missing",
        "the component store is damaged",
        "give a source for the repair",
    ),
    (
        "0x800F0922",
        "CBS_E_INSTALLERS_FAILED: an installer has failed",
        "often a full system partition",
        "free space on the system partition",
    ),
    (
        "0x80073712",
        "ERROR_SXS_COMPONENT_STORE_CORRUPT: the component store is damaged",
        "",
        "repair the component store",
    ),
    ("0x80240022", "WU_E_ALL_UPDATES_FAILED: all updates have failed", "", "read the lines before it"),
    (
        "0xC0000005",
        "STATUS_ACCESS_VIOLATION: an access to memory that is not the process's own",
        "a fault of the program",
        "collect the dump",
    ),
    ("0xC0000135", "STATUS_DLL_NOT_FOUND: a library is missing", "", "install the library"),
];

/// Facilities of HRESULT.
const FACILITIES: [(u32, &str); 12] = [
    (0, "no facility"),
    (1, "RPC"),
    (2, "dispatch"),
    (3, "storage"),
    (4, "interface"),
    (7, "Win32"),
    (8, "Windows"),
    (9, "security"),
    (15, "COM+ or setup"),
    (25, "HTTP"),
    (36, "Windows Update"),
    (54, "TPM"),
];

const KERNEL: [Row; 10] = [
    (
        "KERNEL:PANIC",
        "the kernel has stopped",
        "a fault of a driver, of the root file system or of the hardware",
        "collect the console's log",
    ),
    ("KERNEL:OOPS", "a fault in the kernel; the process was ended", "a fault of a driver", "collect the stack trace"),
    ("KERNEL:BUG", "an assertion of the kernel failed", "a fault of the kernel or a driver", "collect the stack trace"),
    ("KERNEL:WARNING", "a check of the kernel failed; it goes on", "", "collect the stack trace"),
    (
        "KERNEL:HUNG_TASK",
        "a process waits in the kernel for minutes",
        "slow or failing storage",
        "check the health of the storage",
    ),
    (
        "KERNEL:RCU_STALL",
        "a processor does not respond",
        "a loop with interrupts off, or an overloaded machine",
        "collect the stack trace",
    ),
    ("KERNEL:GPF", "an illegal access to memory in the kernel", "a fault of a driver", "collect the stack trace"),
    (
        "KERNEL:PAGE_FAULT",
        "an access to memory that does not exist, in the kernel",
        "a fault of a driver",
        "collect the stack trace",
    ),
    (
        "KERNEL:SEGFAULT",
        "a process has accessed memory that is not its own",
        "a fault of the program",
        "collect the core dump",
    ),
    (
        "KERNEL:OOM_KILL",
        "the kernel was out of memory and has killed a process",
        "the memory is used up",
        "find what uses it; add memory or limit it",
    ),
];

pub fn describe(code: &str) -> Option<Description> {
    match code.split_once(':') {
        Some(("ERRNO", number)) => errno(code, |row| number.parse() == Ok(row.0)),
        Some(("HTTP", status)) => http(code, status),
        Some(("EXIT", status)) => exit(code, status),
        Some(("KERNEL", _)) => in_table(&KERNEL, code, code, LINUX),
        Some(_) => None,
        None if code.starts_with("SIG") => in_table(&SIGNALS, code.strip_prefix("SIG")?, code, LINUX),
        None if code.starts_with("0x") => result(code),
        None => errno(code, |row| row.1 == code),
    }
}

pub fn listed() -> impl Iterator<Item = String> {
    let errno = ERRNO.iter().map(|row| row.1.to_owned());
    let statuses = STATUSES.iter().map(|(status, ..)| format!("HTTP:{status}"));
    let signals = SIGNALS.iter().map(|(signal, ..)| format!("SIG{signal}"));
    let exits = EXITS.iter().map(|(status, ..)| format!("EXIT:{status}"));
    let fixed = KNOWN_RESULTS.iter().chain(&KERNEL).map(|(code, ..)| (*code).to_owned());
    errno.chain(statuses).chain(signals).chain(exits).chain(fixed)
}

fn errno(code: &str, is_it: impl Fn(&(u32, &str, &str, &str, &str)) -> bool) -> Option<Description> {
    let (_, name, text, cause, remedy) = ERRNO.iter().find(|row| is_it(row))?;
    Some(Description::new(code, LINUX, format!("{name}: {text}")).with(cause, remedy))
}

fn http(code: &str, status: &str) -> Option<Description> {
    in_table(&STATUSES, status, code, HTTP).or_else(|| {
        let by = match status.parse::<u16>().ok()? {
            400..500 => "an error of the request",
            500..600 => "an error of the server",
            _ => return None,
        };
        Some(Description::new(code, HTTP, by))
    })
}

/// Above 128, shells report the signal that killed a process.
fn exit(code: &str, status: &str) -> Option<Description> {
    let number: u32 = status.parse().ok()?;
    let signal = number.checked_sub(128).and_then(|number| SIGNAL_NUMBERS.iter().find(|(known, _)| *known == number));
    match signal {
        Some((_, signal)) => {
            let mut description = in_table(&SIGNALS, signal, code, LINUX)?;
            description.meaning = format!("killed by SIG{signal}: {}", description.meaning);
            Some(description)
        }
        None => in_table(&EXITS, status, code, "POSIX"),
    }
}

/// `0x80070005`: a known value, or its facility and number.
fn result(code: &str) -> Option<Description> {
    let value = u32::from_str_radix(code.strip_prefix("0x")?, 16).ok().filter(|_| code.len() == 10)?;
    let (facility, number) = ((value >> 16) & 0x7ff, value & 0xffff);
    // The bit of errors in an HRESULT; the two bits of errors in an NTSTATUS.
    let (kind, facility) = match value >> 30 {
        3 => ("NTSTATUS", None),
        2 => ("HRESULT", FACILITIES.iter().find(|(known, _)| *known == facility).map(|(_, name)| *name)),
        _ => return None,
    };
    let parts = match facility {
        Some(facility) => format!("{kind} of {facility}, number {number}"),
        None => format!("{kind} 0x{value:08X}"),
    };
    let known = in_table(&KNOWN_RESULTS, code, code, WINDOWS);
    Some(match known {
        Some(known) => Description { meaning: format!("{} ({parts})", known.meaning), ..known },
        None => Description::new(code, WINDOWS, parts),
    })
}
