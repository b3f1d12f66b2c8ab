//! Targets of a step's reconstruction other than its input, with a weight for the error of each token: what a
//! scaling needs that is taken from each row and undone on its reconstruction.

use super::workspace::Workspace;

/// What the next step aims at, if it is not its input.
#[derive(Default)]
pub(super) struct NextAim {
    is_set: bool,
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
        if !std::mem::take(&mut self.is_set) {
            return None;
        }
        assert_eq!(self.aim.target.len(), len, "targets are (B, D)");
        Some(&self.aim)
    }
}

impl Workspace {
    /// For the next step alone: compare the reconstruction of token b with row b of `target` (B, D) instead
    /// of the input's, and count its squared error `weight[b]` times instead of once. The auxiliary loss of
    /// a TopK step is not weighted.
    pub fn aim_at(&mut self, target: &[f32], weight: &[f32]) {
        assert_eq!(target.len(), weight.len() * self.shape.d_in, "a target and a weight for every token");
        let NextAim { is_set, aim } = &mut self.aim;
        aim.target.clear();
        aim.target.extend_from_slice(target);
        aim.weight.clear();
        aim.weight.extend_from_slice(weight);
        *is_set = true;
    }
}

#[cfg(test)]
mod tests {
    use super::super::isa::Isa;
    use super::super::testing::{Problem, check_close, check_grads, check_loss};
    use super::super::{Pool, StandardStep, TopKStep, reference, standard_step, topk_step};

    #[test]
    fn aimed_steps_equal_the_reference_and_the_aim_holds_once() {
        for shift in [-1.0, 0.0, 1000.0] {
            let problem = Problem::new(19, 101, 35, shift, 4);
            let target: Vec<f32> = problem.x.iter().map(|x| 1.2 * x + 0.1).collect();
            let weight: Vec<f32> = (0..35).map(|b| b as f32 / 9.0).collect();
            let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
            let (target64, weight64) = (wide(&target), wide(&weight));
            let aim = Some(reference::Aim { target: &target64, weight: &weight64 });
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
}
