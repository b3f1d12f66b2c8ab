//! Targets of a step's reconstruction other than its input, with a weight for the error of each token: what a
//! scaling needs that is taken from each row and undone on its reconstruction, and what a transcoder learns.

use super::workspace::Workspace;

/// What the next step aims at, if it is not its input.
#[derive(Default)]
pub(super) struct NextAim {
    is_set: bool,
    is_of_this_step: bool,
    aim: Aim,
}

/// Targets (B, D) and weights (B).
#[derive(Default)]
pub(super) struct Aim {
    pub(super) target: Vec<f32>,
    pub(super) weight: Vec<f32>,
}

impl NextAim {
    /// The aim, once; its targets must hold `len` numbers.
    pub(super) fn take(&mut self, len: usize) -> Option<&Aim> {
        self.begin(len);
        self.now()
    }

    /// Begins a step that goes through its batch of `len` numbers in parts.
    pub(super) fn begin(&mut self, len: usize) {
        self.is_of_this_step = std::mem::take(&mut self.is_set);
        if self.is_of_this_step {
            assert_eq!(self.aim.target.len(), len, "targets are (B, D)");
        }
    }

    /// The aim of the step that has begun.
    pub(super) fn now(&self) -> Option<&Aim> {
        self.is_of_this_step.then_some(&self.aim)
    }
}

impl Workspace {
    /// For the next step alone: compare the reconstruction of token b with row b of `target` (B, D) instead
    /// of the input's, and count its squared error `weight[b]` times instead of once. The auxiliary loss of
    /// a TopK step is not weighted.
    pub fn aim_at(&mut self, target: &[f32], weight: &[f32]) {
        assert_eq!(target.len(), weight.len() * self.shape.d_in, "a target and a weight for every token");
        let NextAim { is_set, aim, .. } = &mut self.aim;
        aim.target.clear();
        aim.target.extend_from_slice(target);
        aim.weight.clear();
        aim.weight.extend_from_slice(weight);
        *is_set = true;
    }

    /// From now on, at most half of `width` dead latents are in the auxiliary loss of a TopK step instead of half
    /// of D: for targets that are filled up with zeros, whose own width is less.
    pub fn set_aux_width(&mut self, width: usize) {
        self.aux_width = width;
    }
}

#[cfg(test)]
mod tests {
    use super::super::isa::Isa;
    use super::super::testing::{Problem, check_close, check_grads, check_loss};
    use super::super::{
        JumpReluStep, Params, Pool, SparsityMode, StandardStep, TopKStep, jumprelu_step, reference,
        standard_step, topk_step,
    };

    #[test]
    fn aimed_steps_equal_the_reference_and_the_aim_holds_once() {
        for shift in [-1.0, 0.0, 1000.0] {
            let problem = Problem::new(19, 101, 35, shift, 4);
            let target: Vec<f32> = problem.x.iter().map(|x| 1.2 * x + 0.1).collect();
            let weight: Vec<f32> = (0..35).map(|b| b as f32 / 9.0).collect();
            let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
            let (target64, weight64) = (wide(&target), wide(&weight));
            let aim = Some(reference::Aim { target: &target64, weight: &weight64, width: 19 });
            let (params, x) = (problem.params.to_f64(), problem.x64());
            let standard = StandardStep { l1_coefficient: 0.3, lp_norm: 1.0, apply_b_dec_to_input: true };
            let topk = TopKStep {
                k: 7,
                aux_loss_coefficient: 0.0,
                normalize_aux_loss: false,
                rescale_acts_by_decoder_norm: true,
                apply_b_dec_to_input: false,
            };
            let dead = vec![false; 101];
            for isa in Isa::available() {
                let pool = Pool::new(2);
                let mut ws = problem.workspace(&pool, isa);
                let mut grads = problem.dirty_grads();
                for round in 0..2 {
                    let what = format!("{} shift {shift}, round {round}", isa.name());
                    let aim = if round == 0 { aim } else { None };

                    if round == 0 {
                        ws.aim_at(&target, &weight);
                    }
                    let losses =
                        standard_step(&pool, &mut ws, &problem.params, &standard, &problem.x, &mut grads);
                    let want = reference::aimed_standard_step(&params, &standard, &x, aim);
                    check_loss(&what, losses.overall, want.losses.overall);
                    check_loss(&what, losses.mse, want.losses.mse);
                    check_close(&what, ws.reconstruction(), &want.reconstruction);
                    check_grads(&what, &problem, true, &grads, &want);

                    if round == 0 {
                        ws.aim_at(&target, &weight);
                    }
                    let losses =
                        topk_step(&pool, &mut ws, &problem.params, &topk, &dead, &problem.x, &mut grads);
                    let want = reference::aimed_topk_step(&params, &topk, &dead, &x, aim);
                    check_loss(&what, losses.overall, want.losses.overall);
                    check_grads(&what, &problem, true, &grads, &want);
                }
            }
        }
    }

    /// A transcoder's step: columns without an input, columns without a target, and an auxiliary loss that is
    /// aimed, too. Padding takes part in nothing.
    #[test]
    fn transcoder_steps_equal_the_reference_and_leave_the_padding_alone() {
        for (d_in, d_out, shift) in [(19, 19, 0.0), (12, 21, -1.0), (21, 12, 0.0), (4, 9, 0.5), (9, 4, 0.5)] {
            let (width, d_sae, batch) = (d_in.max(d_out), 101, 35);
            let mut problem = Problem::new(width, d_sae, batch, shift, 7);
            let clear = |rows: &mut [f32], from: usize| {
                rows.chunks_exact_mut(width).for_each(|row| row[from..].fill(0.0));
            };
            clear(&mut problem.params.w_enc, d_in);
            clear(&mut problem.params.w_dec, d_out);
            problem.params.b_dec[d_out..].fill(0.0);
            clear(&mut problem.x, d_in);
            let mut target: Vec<f32> = problem.x.iter().rev().map(|x| 0.9 * x - 0.2).collect();
            clear(&mut target, d_out);
            let thresholds: Vec<f32> = (0..d_sae).map(|f| (f % 5) as f32 / 8.0).collect();
            let with_thresholds = Params { threshold: thresholds, ..problem.params.clone() };
            let weight = vec![1.0; batch];
            let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
            let (target64, weight64) = (wide(&target), wide(&weight));
            let aim = Some(reference::Aim { target: &target64, weight: &weight64, width: d_out });
            let (params, x) = (problem.params.to_f64(), problem.x64());
            let standard = StandardStep { l1_coefficient: 0.3, lp_norm: 1.0, apply_b_dec_to_input: false };
            let topk = TopKStep {
                k: 7,
                aux_loss_coefficient: 0.7,
                normalize_aux_loss: false,
                rescale_acts_by_decoder_norm: false,
                apply_b_dec_to_input: false,
            };
            let jumprelu = JumpReluStep {
                mode: SparsityMode::Step,
                l0_coefficient: 0.2,
                bandwidth: 0.5,
                pre_act_loss_coefficient: 0.1,
                ste_to_input: true,
                apply_b_dec_to_input: false,
            };
            let dead: Vec<bool> = (0..d_sae).map(|f| f % 4 == 1).collect();
            let wants = [
                reference::aimed_standard_step(&params, &standard, &x, aim),
                reference::aimed_topk_step(&params, &topk, &dead, &x, aim),
                reference::aimed_jumprelu_step(&with_thresholds.to_f64(), &jumprelu, &dead, &x, aim),
            ];
            for isa in Isa::available() {
                let pool = Pool::new(2);
                let mut ws = problem.workspace(&pool, isa);
                ws.set_aux_width(d_out);
                for (nth, want) in wants.iter().enumerate() {
                    let what = format!("{} {d_in} to {d_out}, step {nth}", isa.name());
                    let mut grads = problem.dirty_grads();
                    ws.aim_at(&target, &weight);
                    let (params, x) = (&problem.params, problem.x.as_slice());
                    let losses = match nth {
                        0 => standard_step(&pool, &mut ws, params, &standard, x, &mut grads),
                        1 => topk_step(&pool, &mut ws, params, &topk, &dead, x, &mut grads),
                        _ => {
                            grads.threshold = vec![9.0; d_sae];
                            jumprelu_step(&pool, &mut ws, &with_thresholds, &jumprelu, &dead, x, &mut grads)
                        }
                    };
                    check_loss(&what, losses.overall, want.losses.overall);
                    check_loss(&what, losses.mse, want.losses.mse);
                    check_loss(&what, losses.sparsity, want.losses.sparsity);
                    check_close(&what, ws.reconstruction(), &want.reconstruction);
                    check_grads(&what, &problem, false, &grads, want);
                    for (rows, from) in [(&grads.w_enc, d_in), (&grads.w_dec, d_out), (&grads.b_dec, d_out)] {
                        assert!(
                            rows.chunks_exact(width).all(|row| row[from..].iter().all(|&g| g == 0.0)),
                            "{what}"
                        );
                    }
                }
            }
        }
    }
}
