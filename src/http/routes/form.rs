//! The headers of a part of a form.

use axum::http::HeaderMap;
use axum::http::header::CONTENT_DISPOSITION;

/// A parameter of a part's `Content-Disposition`. Its name is case-insensitive (RFC 2045, 5.1).
pub fn parameter(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(CONTENT_DISPOSITION)?;
    let text = std::str::from_utf8(value.as_bytes()).ok()?;
    let mut rest = text.split_once(';')?.1;
    loop {
        let (found, after) = rest.split_once('=')?;
        let (value, after) = value_of(after.trim_start());
        if found.trim().eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = after.split_once(';')?.1;
    }
}

/// A value with or without quotes, and the text after it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[at + 1..]),
            // A backslash escapes a quote or a backslash; before other characters it is literal.
            '\\' => match quoted[at + 1..].chars().next() {
                Some(next @ ('"' | '\\')) => {
                    letters.next();
                    value.push(next);
                }
                _ => value.push('\\'),
            },
            letter => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parameters_are_case_insensitive() {
        let table = [
            ("form-data; NAME=\"file\"; FileName=\"upper.log\"", Some("file"), Some("upper.log")),
            ("form-data; name=file; filename=a.log", Some("file"), Some("a.log")),
            ("form-data; filename=\"a;name=b\"; Name = \"file\"", Some("file"), Some("a;name=b")),
            ("form-data; name=\"a\\\"b\"", Some("a\"b"), None),
            ("form-data", None, None),
        ];
        for (value, name, file_name) in table {
            let headers = HeaderMap::from_iter([(CONTENT_DISPOSITION, value.parse().expect("a header"))]);
            assert_eq!(parameter(&headers, "name").as_deref(), name, "{value}");
            assert_eq!(parameter(&headers, "filename").as_deref(), file_name, "{value}");
        }
    }
}
