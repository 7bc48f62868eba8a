//! Removes what identifies a vehicle from texts that leave the server.

use std::borrow::Cow;

/// The length of a VIN.
const VIN_LENGTH: usize = 17;

/// A shorter name of a vehicle would remove parts of other words.
const NAME_LENGTH_MIN: usize = 3;

/// A text without VINs (of any vehicle), and without the VIN and the name of a vehicle, in any case of letters.
pub fn masked<'t>(text: &'t str, vin: &str, vehicle_id: &str) -> Cow<'t, str> {
    let text = without(Cow::Borrowed(text), vin, "[VIN]");
    let text = without(text, vehicle_id, "[vehicle]");
    let starts: Vec<usize> = vins(&text).collect();
    if starts.is_empty() {
        return text;
    }
    let (mut masked, mut end) = (String::with_capacity(text.len()), 0);
    for start in starts {
        masked.push_str(&text[end..start]);
        masked.push_str("[VIN]");
        end = start + VIN_LENGTH;
    }
    masked.push_str(&text[end..]);
    Cow::Owned(masked)
}

/// A text with another in place of a name.
fn without<'t>(text: Cow<'t, str>, name: &str, instead: &str) -> Cow<'t, str> {
    // Of these letters, both cases have the same length.
    let lower = text.to_ascii_lowercase();
    let name = name.to_ascii_lowercase();
    if name.len() < NAME_LENGTH_MIN || !lower.contains(&name) {
        return text;
    }
    let (mut masked, mut end) = (String::with_capacity(text.len()), 0);
    for (start, _) in lower.match_indices(&name) {
        masked.push_str(&text[end..start]);
        masked.push_str(instead);
        end = start + name.len();
    }
    masked.push_str(&text[end..]);
    Cow::Owned(masked)
}

/// Where VINs begin: words of 17 letters and digits, without I, O and Q.
fn vins(text: &str) -> impl Iterator<Item = usize> {
    let bytes = text.as_bytes();
    let mut start = 0;
    std::iter::from_fn(move || {
        while start < bytes.len() {
            let word = bytes[start..].iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
            let found = start;
            start += word.max(1);
            if is_vin(&bytes[found..found + word]) {
                return Some(found);
            }
        }
        None
    })
}

fn is_vin(word: &[u8]) -> bool {
    word.len() == VIN_LENGTH && !word.iter().any(|byte| b"IOQ".contains(&byte.to_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vins_and_the_name_of_the_vehicle_are_removed() {
        for (text, expected) in [
            ("", ""),
            ("vin=WVWZZZ1JZXW000001, ok", "vin=[VIN], ok"),
            ("wvwzzz1jzxw000001 WVWZZZ1JZXW000002", "[VIN] [VIN]"),
            ("veh-7: übel VEH-7", "[vehicle]: übel [vehicle]"),
            ("idWVWZZZ1JZXW000009x", "id[VIN]x"),
            ("12345678901234567", "[VIN]"),
            // Too long, too short, and with an I.
            (
                "WVWZZZ1JZXW0000012 WVWZZZ1JZXW00000 UNEXPECTEDFAILURE",
                "WVWZZZ1JZXW0000012 WVWZZZ1JZXW00000 UNEXPECTEDFAILURE",
            ),
        ] {
            assert_eq!(masked(text, "WVWZZZ1JZXW000009", "veh-7"), expected);
        }
        assert_eq!(masked("a v b", "", "v"), "a v b", "a name of one letter is in other words too");
    }
}
