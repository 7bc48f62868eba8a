//! Removes what identifies a vehicle from texts that leave the server.

use std::borrow::Cow;

/// The length of a VIN.
const VIN_LENGTH: usize = 17;

/// A shorter name of a vehicle would remove parts of other words.
const NAME_LENGTH_MIN: usize = 3;

/// A text without VINs (of any vehicle) and without the name of a vehicle.
pub fn masked<'t>(text: &'t str, vehicle_id: &str) -> Cow<'t, str> {
    let without_name: Cow<'t, str> = match vehicle_id.len() >= NAME_LENGTH_MIN && text.contains(vehicle_id) {
        true => Cow::Owned(text.replace(vehicle_id, "[vehicle]")),
        false => Cow::Borrowed(text),
    };
    let starts: Vec<usize> = vins(&without_name).collect();
    if starts.is_empty() {
        return without_name;
    }
    let (mut masked, mut end) = (String::with_capacity(without_name.len()), 0);
    for start in starts {
        masked.push_str(&without_name[end..start]);
        masked.push_str("[VIN]");
        end = start + VIN_LENGTH;
    }
    masked.push_str(&without_name[end..]);
    Cow::Owned(masked)
}

/// Where VINs begin: words of 17 letters and digits that have both, without I, O and Q.
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
    word.len() == VIN_LENGTH
        && !word.iter().any(|byte| b"IOQ".contains(&byte.to_ascii_uppercase()))
        && word.iter().any(u8::is_ascii_digit)
        && word.iter().any(u8::is_ascii_alphabetic)
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
            ("veh-7: übel veh-7", "[vehicle]: übel [vehicle]"),
            // Too long, too short, and without a digit.
            (
                "WVWZZZ1JZXW0000012 WVWZZZ1JZXW00000 UNEXPECTEDFAXLURE",
                "WVWZZZ1JZXW0000012 WVWZZZ1JZXW00000 UNEXPECTEDFAXLURE",
            ),
        ] {
            assert_eq!(masked(text, "veh-7"), expected);
        }
        assert_eq!(masked("a v b", "v"), "a v b", "a name of one letter is in other words too");
    }
}
