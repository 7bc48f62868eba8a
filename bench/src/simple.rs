//! The one simple pattern that peers search for: it finds a code in each coded
//! line of a generated log, by its looks and without the care that the rules take.

/// An alternation that grep, RE2 and Rust understand alike. Its only group holds all that it matches.
pub const PATTERN: &str = r"\b([PCBU][0-3][0-9A-F]{3}-[0-9A-F]{2}|E_[A-Z_]+|ETIMEDOUT|SIG[A-Z]+|OTA-[0-9]+|7F [0-9A-F]{2} [0-9A-F]{2}|SPN [0-9]+ FMI [0-9]+|errno: [0-9]+|HTTP/1\.1 [45][0-9]{2}|exited with code [0-9]+|rc=-[0-9]+)";

/// A user's rule file that holds the pattern and nothing else.
pub fn rule_file() -> String {
    let pattern = PATTERN.replacen('(', "(?P<code>", 1);
    format!("[[rule]]\nname = \"simple\"\nform = \"asis\"\npatterns = [{{ pattern = '{pattern}' }}]\n")
}
