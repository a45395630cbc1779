// Package handover decides which part of a VM runs a vCPU while that vCPU goes from one part to another. It is floor 2 and pure.
//
// The VM's home part coordinates, in two phases, within one epoch of the VM or across several, as long as the guest's life lasts:
//
//	home      Stop ------> source    the vCPU stops between two instructions, its state is captured
//	home    <--- Stopped   source
//	home      Install ---> target    the state is in place; nothing runs
//	home    <--- OK        target
//	          commit                  home's own decision, at one instant, taken back by nothing
//	home      Run -------> target    and Leave ---> source
//
// Until the commit home may abort: Forget to the target, Resume to the source. Each message is repeated until it is answered, each is answered however
// often it comes, and a number that rises with every hand-over tells late ones: so messages may be lost, repeated and reordered.
//
// # Who runs a vCPU
//
//   - A part runs a vCPU only while its Holder says Here. A source leaves Here before it answers Stop, and a target enters it on Run only, which home
//     sends after the commit only; after an abort there is no commit. So no vCPU runs twice.
//   - A life of the guest (its boot, or its return to a checkpoint) begins with the placement that the registry has, whatever was under way: every part takes
//     it from the members of that epoch, and what is of another life is refused.
//
// # Losses
//
//	who dies      before the commit                            after it
//	source        it takes the vCPU along, as all its own      nothing is lost
//	target        home aborts: the source goes on              it takes the vCPU along, as all its own
//	home          the VM goes with it, or back to a checkpoint: a new life, with the registry's placement
//	a message     it is sent again
//
// The registry learns of the commit afterwards. As it may be behind within a life, the members of a later epoch of the same life change no placement.
//
// # Checkpoints
//
// Home makes no cut while a hand-over is under way, so a checkpoint holds every vCPU exactly once.
package handover
