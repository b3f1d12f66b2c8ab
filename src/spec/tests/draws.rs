//! Draws of a random search: the same ones every time, as many as asked for or as there are.

use super::{MINIMAL, ids, plan, values};

#[test]
fn draws_repeat_and_do_not_depend_on_their_number_or_on_other_axes() {
    let random = |n: usize, more: &str| {
        plan(&format!("{MINIMAL}[axes]\ntrain.lr = {{ log_uniform = [1e-5, 1e-2] }}\nsae.d_sae = {{ int_uniform = [10, 20] }}\n{more}").replace(
            "name = \"toy\"",
            &format!("name = \"toy\"\nstrategy = \"random\"\ntrials = {n}"),
        ))
    };
    let (short, long) = (random(5, ""), random(12, ""));
    assert_eq!(short.trials.len(), 5);
    assert_eq!(ids(&short)[..], ids(&long)[..5]);
    let wider = random(12, "sae.l1_coefficient = [1, 2, 4]\n");
    assert_eq!(values(&wider, "train.lr"), values(&long, "train.lr"));
    let other_seed = random(12, "[sweep]\n".replace("[sweep]\n", "").as_str());
    assert_eq!(ids(&other_seed), ids(&long));
    for value in values(&long, "train.lr") {
        let text = format!("{:e}", value.as_f64().unwrap());
        assert!(text.len() <= "1.23456e-5".len(), "{text} has at most 6 digits");
    }
}

#[test]
fn draws_are_made_up_for_until_there_are_no_more() {
    let text = format!(
        "{MINIMAL}[axes]\nsae.d_sae = {{ choice = [8, 16, 32, 64] }}\ntrain.seed = {{ repeats = 2 }}\n[[exclude]]\nwhen = \"sae.d_sae == 8\"\n"
    );
    let random = |n: usize| {
        plan(&text.replace("name = \"toy\"", &format!("name = \"toy\"\nstrategy = \"random\"\ntrials = {n}")))
    };
    assert_eq!(random(3).trials.len(), 6);
    let all = random(10);
    assert_eq!(all.trials.len(), 6);
    assert!(all.notes[0].starts_with("only 3 of 10 draws"), "{:?}", all.notes);
}
