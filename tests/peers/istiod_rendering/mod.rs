//! The rendering cases (tests/rendering) as Istio's own control plane has them: istiod gets the objects of a file, and our proxy's
//! matchers decide by what it renders, as `weft test` has them decide by what our control plane does. So the same configuration has the
//! same answers, control plane beside control plane. Where it is otherwise on purpose says `differences.yaml`.
//!
//! istiod takes minutes to build: `tests/peers/install --long` brings it, and `.ci/long` runs this.

mod differences;
mod question;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use serde::Deserialize;
use weft::test::Resources;
use xds_protos::ResourceType;

use self::differences::Differences;
use self::question::{Question, read};
use crate::programs::peer;

/// As many cases as there have to be.
const LEAST: usize = 450;

/// What istiod tells the proxies of a file: resources by type and name.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    proxies: BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>,
    #[serde(default)]
    error: String,
}

impl Answer {
    /// What this proxy is told.
    fn of(&self, proxy: &str) -> Resources {
        let bytes = |text: &String| base64::engine::general_purpose::STANDARD.decode(text).unwrap().into();
        let kind = |url: &str| ResourceType::ALL.into_iter().find(|kind| kind.type_url() == url).unwrap();
        let all = self.proxies[proxy].iter().map(|(url, resources)| {
            let named = resources.iter().map(|(name, text)| (name.as_str().into(), bytes(text)));
            (kind(url), named.collect())
        });
        all.collect()
    }
}

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rendering");
    weft_control::ingest::list_files(&directory).unwrap()
}

/// Puts all questions to one istiod after another in one process.
fn asked(questions: &[Question]) -> Vec<Answer> {
    let mut istiod = Command::new(peer("WEFT_ISTIOD_RENDERER"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut input = istiod.stdin.take().unwrap();
    let output = BufReader::new(istiod.stdout.take().unwrap());
    let answers = std::thread::scope(|scope| {
        scope.spawn(move || {
            for question in questions {
                writeln!(input, "{}", question.text).unwrap();
            }
        });
        output.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
    });
    assert!(istiod.wait().unwrap().success());
    answers
}

#[test]
#[ignore = "needs what tests/peers/install --long brings"]
fn istiod_renders_what_the_cases_say() {
    let files = files();
    let (questions, left_out): (Vec<_>, Vec<_>) =
        files.iter().map(|file| read(file)).partition(Result::is_ok);
    let questions: Vec<Question> = questions.into_iter().flatten().collect();
    let answers = asked(&questions);
    assert_eq!(answers.len(), questions.len(), "questions and answers");
    let (mut judged, mut wrong) = (0, Vec::new());
    let mut known = Differences::read();
    for (question, answer) in questions.iter().zip(&answers) {
        let file = &question.name;
        if !answer.error.is_empty() {
            wrong.push(format!("{file}: istiod does not take it: {}", answer.error));
            continue;
        }
        for case in &question.cases {
            judged += 1;
            let proxy = case.from.as_deref().or(case.to.as_deref()).unwrap();
            let found = weft::test::found_by(&question.world, case, &answer.of(proxy));
            let (failures, found) = match found {
                Ok(found) => (differences::between(&case.expect, &found), found.to_string()),
                Err(error) => (vec![format!("{error:#}")], String::new()),
            };
            if let Some(failures) = known.unknown(file, &case.name, failures) {
                wrong.push(format!(
                    "{file}: {}\n    {}\n    found {found}",
                    case.name,
                    failures.join("\n    ")
                ));
            }
        }
    }
    println!(
        "{judged} cases by istiod, {} of them otherwise on purpose, {} files left out",
        known.met(),
        left_out.len()
    );
    wrong.extend(known.unneeded());
    assert!(wrong.is_empty(), "{} of {judged} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(judged >= LEAST, "only {judged} cases");
}
