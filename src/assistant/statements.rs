//! The model's answer: a JSON object of statements, read whole or as far as it is written.

use serde::Deserialize;
use serde_json::{Value, json};

/// A statement as the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Written {
    /// The statement.
    pub text: String,
    /// The ids of its evidence.
    #[serde(default)]
    pub evidence: Vec<String>,
}

/// The model's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct WrittenAnswer {
    /// In a sentence or two.
    #[serde(default)]
    pub summary: Option<Written>,
    /// The likely cause.
    #[serde(default)]
    pub likely_cause: Option<Written>,
    /// What the evidence says.
    #[serde(default)]
    pub known: Vec<Written>,
    /// What is only a guess.
    #[serde(default)]
    pub guessed: Vec<Written>,
    /// Steps to try.
    #[serde(default)]
    pub steps: Vec<Written>,
}

/// The schema that the model is asked to follow.
pub fn schema() -> Value {
    let statement = json!({
        "type": "object",
        "properties": {"text": {"type": "string"}, "evidence": {"type": "array", "items": {"type": "string"}}},
        "required": ["text", "evidence"],
        "additionalProperties": false
    });
    let list = json!({"type": "array", "items": statement});
    json!({
        "type": "object",
        "properties": {
            "summary": statement,
            "likely_cause": {"anyOf": [statement, {"type": "null"}]},
            "known": list,
            "guessed": list,
            "steps": list
        },
        "required": ["summary", "likely_cause", "known", "guessed", "steps"],
        "additionalProperties": false
    })
}

impl WrittenAnswer {
    /// Reads a whole answer. Text before and after the object, such as a fence, is ignored.
    pub fn parse(text: &str) -> Result<WrittenAnswer, serde_json::Error> {
        let (start, end) = (text.find('{').unwrap_or(0), text.rfind('}').map_or(text.len(), |end| end + 1));
        serde_json::from_str(text.get(start..end).unwrap_or(text))
    }

    /// The statements that are complete in an answer that is being written.
    pub fn so_far(text: &str) -> WrittenAnswer {
        let mut answer = WrittenAnswer::default();
        let (mut depth, mut start, mut in_string, mut is_escaped) = (0_u32, 0, false, false);
        // The last string directly in the answer's object: the name of the field that follows.
        let (mut field, mut string_start) = ("", 0);
        for (at, byte) in text.bytes().enumerate() {
            if in_string {
                match byte {
                    _ if is_escaped => is_escaped = false,
                    b'\\' => is_escaped = true,
                    b'"' => {
                        in_string = false;
                        if depth == 1 {
                            field = &text[string_start..at];
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => (in_string, string_start) = (true, at + 1),
                b'{' => {
                    depth += 1;
                    if depth == 2 {
                        start = at;
                    }
                }
                b'}' => {
                    if depth == 2
                        && let Ok(written) = serde_json::from_str(&text[start..=at])
                    {
                        answer.add(field, written);
                    }
                    depth = depth.saturating_sub(1);
                }
                _ => {}
            }
        }
        answer
    }

    fn add(&mut self, field: &str, written: Written) {
        match field {
            "summary" => self.summary = Some(written),
            "likely_cause" => self.likely_cause = Some(written),
            "known" => self.known.push(written),
            "guessed" => self.guessed.push(written),
            "steps" => self.steps.push(written),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{"summary": {"text": "A \"quoted\" {brace}", "evidence": ["F1"]}, "likely_cause": null,
        "known": [{"text": "a", "evidence": []}, {"text": "b", "evidence": ["K1", "L1"]}],
        "guessed": [], "steps": [{"text": "c", "evidence": ["F1"]}], "more": {"text": "d"}}"#;

    #[test]
    fn an_answer_is_read_as_far_as_it_is_written() {
        let whole = WrittenAnswer::parse(ANSWER).expect("it is an answer");
        assert_eq!(WrittenAnswer::so_far(ANSWER), whole);
        assert_eq!((whole.known.len(), whole.steps.len()), (2, 1));
        assert_eq!(WrittenAnswer::parse(&format!("```json\n{ANSWER}\n```")).expect("it is an answer"), whole);
        let mut before = 0;
        for end in 0..=ANSWER.len() {
            let part = WrittenAnswer::so_far(&ANSWER[..end]);
            let statements = usize::from(part.summary.is_some()) + part.known.len() + part.steps.len();
            assert!(statements == before || statements == before + 1, "{end}");
            before = statements;
        }
        assert_eq!(before, 4);
    }

    #[test]
    fn what_is_no_answer_has_no_statements() {
        for text in
            ["", "I cannot help.", "{", "}}}}", "[1]", "{\"summary\": 7}", "\"\\", "{\"known\": [{\"text\": 7}]}"]
        {
            assert_eq!(WrittenAnswer::so_far(text), WrittenAnswer::default(), "{text}");
        }
        assert!(WrittenAnswer::parse("I cannot help.").is_err());
        assert!(WrittenAnswer::parse("{\"summary\": 7}").is_err());
    }
}
