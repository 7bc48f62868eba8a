//! `argus mcp` with the protocol's own Python client.
#![cfg(feature = "mcp")]

mod common;

use std::process::Command;

use common::python::python;
use common::{Server, VIN};
use serde_json::{Value, json};

/// Lists the tools and calls some; prints what came back.
const SCRIPT: &str = "
import asyncio, json, sys
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

async def main():
    parameters = StdioServerParameters(command=sys.argv[1], args=['mcp', '--server', sys.argv[2]])
    async with stdio_client(parameters) as (reads, writes):
        async with ClientSession(reads, writes) as session:
            begun = await session.initialize()
            tools = (await session.list_tools()).tools
            answers = []
            for name, arguments in json.loads(sys.argv[3]):
                called = (await session.call_tool(name, arguments)).model_dump(by_alias=True)
                answers.append([called['isError'], called['structuredContent'], called['content'][0]['text']])
            print(json.dumps({'instructions': begun.instructions, 'tools': sorted(tool.name for tool in tools), 'answers': answers}))

asyncio.run(main())
";

#[tokio::test(flavor = "multi_thread")]
async fn an_assistant_asks_and_gets_answers_with_their_epoch() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let mut batches = Vec::new();
    for (firmware, log) in [("7.2.0", "E_FAIL\n"), ("7.2.1", "before\nE_FAIL\nafter\nE_ABORT\n")] {
        let described = json!({"vehicle_id": "v", "vin": VIN, "firmware": firmware, "labels": {"region": "north"}});
        let id = server.new_batch_of(described).await;
        server.put(&id, "ota.log", log).await;
        let completed = server.complete(&id).await;
        server.final_report(&id, completed["epoch"].as_u64().expect("an epoch")).await;
        batches.push(id);
    }
    let calls = json!([
        ["batches", {"firmware": "7.2.1"}],
        ["report", {"batch": batches[1]}],
        ["errors", {"batch": batches[1], "code": "E_FAIL", "context": 1}],
        ["codes", {"group_by": "firmware", "labels": {"region": "north"}}],
        ["compare", {"firmware": "7.2.1", "against": "7.2.0"}],
        ["diagnosis", {"batch": batches[1]}],
        ["sql", {"sql": "SELECT code, sum(count) FROM error_counts GROUP BY code ORDER BY code"}],
        ["sql", {"sql": "DELETE FROM errors"}],
        ["compare", {"firmware": "9", "against": "7.2.0"}],
        ["sql", {"sql": "SELECT repeat('x', 300) FROM range(1, 1001)", "limit": 1000}],
    ]);
    let root = server.root_url("/");
    let client = tokio::task::spawn_blocking(move || {
        let arguments = ["-c", SCRIPT, env!("CARGO_BIN_EXE_argus"), &root, &calls.to_string()];
        Command::new(python()).args(arguments).output().expect("python runs")
    });
    let output = client.await.expect("no panic");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let spoken: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(spoken["tools"], json!(["batches", "codes", "compare", "diagnosis", "errors", "report", "sql"]));
    assert!(spoken["instructions"].as_str().is_some_and(|text| text.contains("epoch")));
    let answers = spoken["answers"].as_array().expect("answers");
    for answer in &answers[..7] {
        assert_eq!(answer[0], json!(false), "{answer}");
        assert!(answer[1]["epoch"].as_u64().is_some() || answer[1]["batches"][0]["epoch"].is_u64(), "{answer}");
    }
    assert_eq!(answers[0][1]["batches"][0]["id"], json!(batches[1]));
    assert_eq!(common::counts(&answers[1][1]), json!({"E_FAIL": 1, "E_ABORT": 1}));
    assert_eq!(answers[2][1]["errors"][0]["before"][0], "before");
    assert_eq!(answers[3][1]["codes"][0]["firmware"], "7.2.1");
    assert_eq!(answers[4][1]["codes"][0]["code"], "E_ABORT");
    assert_eq!(answers[5][1]["findings"], json!([]));
    assert!(answers[5][1]["summary"].as_str().is_some_and(|text| text.starts_with("There are too few other vehicles")));
    assert_eq!(answers[6][1]["rows"], json!([["E_ABORT", 1], ["E_FAIL", 2]]));
    for (answer, words) in
        answers[7..].iter().zip(["only a single query", "no vehicle has sent lines", "ask for fewer rows"])
    {
        assert_eq!(answer[0], json!(true));
        assert!(answer[2].as_str().is_some_and(|text| text.contains(words)), "{answer}");
    }
    server.stop();
}
