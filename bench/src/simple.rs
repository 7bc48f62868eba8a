//! The simple pattern that the other tools search for. It finds the codes of
//! generated logs by their form only, without the context checks of the rules.

/// An alternation with the same meaning in grep, RE2 and Rust. Its only group contains the whole match.
pub const PATTERN: &str = r"\b([PCBU][0-3][0-9A-F]{3}-[0-9A-F]{2}|E_[A-Z_]+|ETIMEDOUT|SIG[A-Z]+|OTA-[0-9]+|7F [0-9A-F]{2} [0-9A-F]{2}|SPN [0-9]+ FMI [0-9]+|errno: [0-9]+|HTTP/1\.1 [45][0-9]{2}|exited with code [0-9]+|rc=-[0-9]+)";

/// A rule file with only this pattern.
pub fn rule_file() -> String {
    let pattern = PATTERN.replacen('(', "(?P<code>", 1);
    format!("[[rule]]\nname = \"simple\"\nform = \"asis\"\npatterns = [{{ pattern = '{pattern}' }}]\n")
}
