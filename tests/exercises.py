"""Known mistakes in the exercises of the chapters, and words of what the check must say to each.

{chapter: {check: [(mistake, words), …]}}: a mistake is a lambda, or a function that is called `wrong`; it runs in
the chapter, where the right answers stand in place of the stubs and may be called by their names.
"""

MISTAKES = {
    "00_checks": {
        "check_meant": [
            ("lambda name, allowed: name if name in allowed else None", "compare without capitals"),
            ("lambda name, allowed: name.strip() if meant(name, allowed) else None", "not as it was typed"),
            (
                "lambda name, allowed: next((a for a in allowed if name.strip().lower() in a.lower()), None)",
                "a part of a name",
            ),
        ],
        "check_picture_side": [
            ("lambda side: side", "60 went through"),
            (
                """def wrong(side):
    if int(side) < 16 or int(side) % 8: raise ValueError(f"{side} came, not at least 16 and a multiple of 8")
    return side""",
                "64.0 went through",
            ),
            (
                """def wrong(side):
    try: return picture_side(side)
    except ValueError: raise ValueError("that is no side of a picture") from None""",
                "does not say what came",
            ),
            (
                """def wrong(side):
    try: return picture_side(side)
    except ValueError: raise ValueError(f"{side} came") from None""",
                "does not say what is allowed",
            ),
        ],
        "check_examine": [
            ("lambda f: 'right' if f([3, 1, 2]) == 3 else 'wrong'", "the first number passed"),
            ("lambda f: 'right' if f([1, 2, 3]) == 3 else 'wrong'", "the last number passed"),
            ("lambda f: 'right' if f([1, 3, 2]) == 3 else 'wrong'", "without its sign"),
            ("lambda f: {None: 'nothing yet', 3: 'right'}.get(f([1, 3, 2, -4]), 'wrong')", "must not stop you"),
        ],
    },
    "00a_files": {
        "check_count_up": [
            ("lambda path: write_json({'n': 1}, path) and 1", "the second call must give 2"),
            (
                """def wrong(path):
    try: n = read_json(path)["n"] + 1
    except ValueError: n = 1
    write_json({"n": n}, path)
    return n""",
                "let read_json's error pass",
            ),
        ],
        "check_numbered": [
            ("lambda stem, n: f'{stem}_{n:03d}.png'", "leave room for the end"),
            ("lambda stem, n: f'{stem[:247]}_{n:03d}.png'", "count bytes"),
            ("lambda stem, n: short_name(stem[:60]) + f'_{n:03d}.png'", "two long names became one"),
            ("lambda stem, n: short_name(f'{stem}_{n:03d}.png')", "was cut off"),
        ],
        "check_leftovers": [
            ("lambda folder: sorted(n for n in os.listdir(folder) if n[0] == '.')", "look for .part as well"),
            ("lambda folder: sorted(n for n in os.listdir(folder) if 'part' in n.split('.'))", "is not hidden"),
            (
                "lambda folder: sorted(n for n in os.listdir(folder) if n[0] == '.' and '.part' in n)",
                "no part of its own",
            ),
        ],
    },
    "00b_tags": {
        "check_changed": [
            (
                "lambda tags, b, a: {t: (int(i), int(j)) for t, i, j in zip(tags.names, b, a) if i != j}",
                "is not a change",
            ),
            (
                "lambda tags, b, a: {t: (int(i), int(j)) for t, i, j in zip(tags.names, b, a) "
                "if i != j and min(i, j) >= 0}",
                "decode the labels",
            ),
            ("lambda tags, b, a: {}", "Smiling and HairColor changed"),
        ],
        "check_looks": [
            ("lambda tags: sum(map(len, tags))", "that adds where"),
            ("lambda tags: 2 ** len(tags)", "HairColor has three"),
        ],
        "check_joined": [
            ("lambda mine, hers: TagSet([*mine, *hers])", "was taken twice"),
            ("lambda mine, hers: TagSet({t.name: t for t in [*mine, *hers]}.values())", "lost without a word"),
        ],
    },
    "00c_metadata": {
        "check_kind_of": [
            (
                "lambda data: 'TIFF' if data[:2] == b'II' else kind_of(data) if data[:2] != b'MM' else None",
                "may also begin with MM",
            ),
            ("lambda data: 'PNG' if b'PNG' in data else kind_of(data)", "at the very beginning"),
            ("lambda data: 'PNG' if data[:3] == b'PNG' else kind_of(data)", "nothing but the whole mark"),
        ],
        "check_chunks": [
            ("lambda data: [data[8:12]]", "begin after 8 bytes"),
            (
                """def wrong(data):
    names, at = [], 8
    while at + 8 <= len(data):
        n, name = struct.unpack(">I4s", data[at:at + 8])
        names, at = [*names, name], at + 8 + n
    return names""",
                "12 bytes longer than its data",
            ),
        ],
        "check_exif_of": [
            ("lambda code: struct.pack('2sHIHHHIHHI', b'II', 42, 8, 1, 0x0112, 3, 1, code, 0, 0)", "it takes 26"),
            ("lambda code: struct.pack('>2sHIHHHIHHI', b'II', 42, 8, 1, 0x0112, 3, 1, code, 0, 0)", "small part first"),
            ("lambda code: exif_of(6)", "for code 1 it says 6"),
        ],
    },
    "00d_images": {
        "check_upright": [
            ("lambda a, code: a", "have changed places"),
            ("lambda a, code: np.rot90(a, {1: 0, 3: 2, 6: 1, 8: -1}[code])", "the other way round"),
            ("lambda a, code: upright(a, code) if code != 3 else a[::-1]", "code 3 is turned or mirrored"),
        ],
        "check_shrink": [
            ("lambda a, k: a[::k, ::k]", "average each block"),
            ("lambda a, k: shrink(a, 2 * k)", "is half of"),
            ("lambda a, k: a.reshape(k, a.shape[0] // k, a.shape[1] // k, k).mean((0, 3))", "no neighbours"),
        ],
        "check_to_bytes": [
            ("lambda a: a.astype(np.uint8)", "divide by 257"),
            ("lambda a: (a >> 8).astype(np.uint8)", "round, do not cut off"),
            ("lambda a: a / 257", "uint8 is wanted"),
        ],
    },
    "00e_core": {
        "check_on_colour": [
            ("lambda rgba, c: from_uint8(torch.from_numpy(rgba[..., :3].copy()).permute(2, 0, 1))", "fourth channel"),
            (
                "lambda rgba, c: on_colour(np.concatenate([rgba[..., :3], 255 - rgba[..., 3:]], -1), c)",
                "where the picture is opaque",
            ),
            (
                "lambda rgba, c: from_uint8(torch.from_numpy(rgba[..., :3].copy()).permute(2, 0, 1)) * "
                "torch.from_numpy(rgba[..., 3] * 1.)",
                "Divide it by 255",
            ),
        ],
        "check_noise_of": [
            ("lambda names, shape: randn((len(names), *shape), make_generator(0))", "use her name"),
            ("lambda names, shape: randn((1, *shape), make_generator(0)).expand(len(names), *shape)", "the same noise"),
            (
                "lambda names, shape: randn((len(names), *shape), make_generator(sum(map(len, names))))",
                "with its neighbours",
            ),
        ],
        "check_in_pieces": [
            ("lambda f, x, n: f(x)", "came at once"),
            (
                "lambda f, x, n: torch.cat([f(x[i:i + n]) for i in range(0, len(x) - n + 1, n)])",
                "the last piece may be shorter",
            ),
            ("lambda f, x, n: torch.cat([f(a) for a in x.split(1)])", "pieces of 3, 3 and 1"),
        ],
    },
    "00f_checkpoints": {
        "check_promised": [
            ("lambda head: sum(torch.Size(s).numel() for _, s in head.values())", "each takes dtype.itemsize bytes"),
            (
                "lambda head: sum(d.itemsize * torch.Size(s).numel() for d, s in head.values() if s)",
                "without axes holds one number",
            ),
        ],
        "check_healthy": [
            ("lambda t: not (t == float('nan')).any()", "== does not find it"),
            ("lambda t: not torch.isnan(t.float()).any()", "infinity is no number"),
        ],
        "check_compared": [
            ("lambda want, have: compared(have, want)", "the other way round"),
            ("lambda want, have: compared(want, have)[:2] + ([],)", "may still have another shape"),
        ],
    },
    "01_drawing": {
        "check_crescent": [
            ("lambda x, y, r, s: torch.sqrt(x * x + y * y) - r", "full disc"),
            (
                "lambda x, y, r, s: torch.maximum(torch.sqrt(x * x + y * y) - r, torch.sqrt((x - s) ** 2 + y * y) - r)",
                "turn the sign",
            ),
            (
                "lambda x, y, r, s: torch.minimum(torch.sqrt(x * x + y * y) - r, torch.sqrt((x - s) ** 2 + y * y) - r)",
                "joins the two",
            ),
        ],
        "check_mark": [
            ("lambda s: s.image.mul_(.9)", "far from the mark"),
            (
                "lambda s: s.paint(s.window(-1, 1), s.cover(torch.sqrt((s.x - .3) ** 2 + (s.y - .18) ** 2) - .02), "
                "s.rgb(0., 0., 0.))",
                "has a hole or lies elsewhere",
            ),
            (
                "lambda s: s.paint(s.window(-1, 1), s.cover(torch.sqrt((s.x - .3) ** 2 + (s.y - .24) ** 2) - .03), "
                "s.rgb(1., 1., 1.))",
                "not darker than the skin",
            ),
        ],
        "check_spectacles": [
            ("lambda x, y, a, r, t: (torch.sqrt((x - a) ** 2 + y * y) - r).abs() - t", "that is one ring"),
            ("lambda x, y, a, r, t: torch.sqrt((x.abs() - a) ** 2 + y * y) - r - t", "the outline of d is where"),
            ("lambda x, y, a, r, t: torch.sqrt((x.abs() - a) ** 2 + y * y) - r", "the wire has no width"),
            ("lambda x, y, a, r, t: (torch.sqrt((x.abs() - a) ** 2 + y * y) - r).abs()", "wrong side"),
        ],
    },
    "01a_faces": {
        "check_both": [
            ("lambda ds, i, first, second: ds.counterfactual(i, *first)", "only the first"),
            ("lambda ds, i, first, second: ds.counterfactual(i, *second)", "only the second"),
            (
                """def wrong(ds, i, first, second):
    x = ds[i]["image"]
    return (x + sum(ds.counterfactual(i, *e) - x for e in (first, second))).clamp(-1, 1)""",
                "not in the pixels",
            ),
        ],
        "check_swapped": [
            ("lambda ds, i, j, tag: ds.counterfactual([i, j], tag, 'with')", "each its own"),
            ("lambda ds, i, j, tag: ds.counterfactual([i, j], tag, 'with', style_from=j)", "the same glasses"),
            ("lambda ds, i, j, tag: ds.counterfactual([j, i], tag, 'with', style_from=[i, j])", "changed places"),
        ],
        "check_reach": [
            (
                """def wrong(ds, tag, indices):
    off, on = (ds.counterfactual(indices, tag, v) for v in ("without", "with"))
    return (off != on).float().mean()""",
                "share of numbers, not of pixels",
            ),
            (
                """def wrong(ds, tag, indices):
    off, on = (ds.counterfactual(indices, tag, v) for v in ("without", "with"))
    return (off - on).abs().mean()""",
                "how much pixels change",
            ),
            (
                """def wrong(ds, tag, indices):
    on = ds.counterfactual(indices, tag, "with")
    return (ds.batch(indices)["image"] != on).any(1).float().mean()""",
                "some faces smile already",
            ),
        ],
    },
    "01b_datasets": {
        "check_balanced": [
            ("lambda labels, column, n, g: torch.randint(len(labels), (n,), generator=g)", "give them no weight"),
            (
                """def wrong(labels, column, n, g):
    known = torch.nonzero(labels[:, column] >= 0)[:, 0]
    return known[torch.randint(len(known), (n,), generator=g)]""",
                "one over the count",
            ),
            ("lambda labels, column, n, g: balanced(labels, column, n // 2, g)", "1000 were asked for"),
        ],
        "check_split": [
            (
                """def wrong(people, share, g):
    order, cut = torch.randperm(len(people), generator=g), int(share * len(people))
    return order[cut:], order[:cut]""",
                "draw people, not faces",
            ),
            ("lambda p, share, g: (torch.nonzero(p >= 10)[:, 0], torch.nonzero(p < 10)[:, 0])", "the first people"),
            ("lambda p, share, g: (torch.arange(0, 240, 6), torch.arange(240, 300, 6))", "on neither side"),
            ("lambda p, share, g: split(p, .4, g)", "10 were asked for"),
        ],
        "check_share": [
            ("lambda labels, column, value: (labels[:, column] == value).float().mean()", "the share of all faces"),
            (
                "lambda labels, column, value: (labels[labels[:, column] >= 0, column] > 0).float().mean()",
                "the number of its value",
            ),
            (
                "lambda labels, column, value: labels[labels[:, column] >= 0, column].float().mean()",
                "the number of its value",
            ),
        ],
    },
    "01c_cache": {
        "check_mean_face": [
            ("lambda ds, chunk: ds.batch(range(chunk))['image'].mean(0)", "only the first piece"),
            ("lambda ds, chunk: ds.batch(range(len(ds) // chunk * chunk))['image'].mean(0)", "was left out"),
            (
                """def wrong(ds, chunk):
    pieces = [ds.batch(range(at, min(at + chunk, len(ds))))["image"] for at in range(0, len(ds), chunk)]
    return torch.stack([x.mean(0) for x in pieces]).mean(0)""",
                "mean of means",
            ),
        ],
        "check_key_of": [
            ("lambda images, labels: str((images.sum(), labels.sum()))", "a sum forgets the order"),
            ("lambda images, labels: str(id(images))", "the same faces gave another key"),
            ("lambda images, labels: hashlib.sha256(images.numpy().tobytes()).hexdigest()", "a label has changed"),
            ("lambda images, labels: str((images.float().mean((1, 2, 3)).round(), labels))", "one pixel has changed"),
        ],
        "check_halves": [
            (
                """def wrong(mask):
    s = mask.mean()
    return .5 * (mask / s + (1 - mask) / (1 - s))""",
                "keep the batch's dimension",
            ),
            ("lambda mask: 1 + mask", "do not count alike"),
            ("lambda mask: 2 * halves(mask)", "change its scale"),
        ],
    },
    "02_plots": {
        "check_amplify": [
            ("lambda a, b, gain: a", "first image unchanged"),
            ("lambda a, b, gain: (gain * (b - a) + 1).clamp(0, 2) / 2", "in [0, 1] instead"),
            ("lambda a, b, gain: gain * (b - a)", "clip it"),
            ("lambda a, b, gain: amplify(b, a, gain)", "not a minus b"),
        ],
        "check_fair_limits": [
            ("lambda maps: (float(maps[0].min()), float(maps[0].max()))", "cuts off the second map"),
            (
                "lambda maps: (float(torch.stack(maps).min()), float(torch.stack(maps).max()))",
                "the colour of no change",
            ),
            ("lambda maps: (-2., 2.)", "looks pale"),
        ],
        "check_smoothed": [
            ("lambda y, k: y", "nothing was smoothed"),
            (
                "lambda y, k: torch.stack([y[max(0, i - k // 2):i + k // 2 + 1].mean() for i in range(len(y))])",
                "use the past only",
            ),
            (
                "lambda y, k: torch.nn.functional.conv1d(torch.cat([torch.zeros(k - 1), y])[None, None], "
                "torch.full((1, 1, k), 1 / k))[0, 0]",
                "divide by how many",
            ),
            ("lambda y, k: smoothed(y, k)[k - 1:]", "one for each step"),
        ],
    },
    "03_schedule": {
        "check_eps_from_v": [
            ("lambda v, xt, signal, sigma: signal * xt + sigma * v", "exchanged"),
            ("lambda v, xt, signal, sigma: sigma * xt - signal * v", "the sign is off"),
            ("lambda v, xt, signal, sigma: v", "solve for ε"),
        ],
        "check_half_dark": [
            ("lambda s: half_dark(s) - 1", "one step early"),
            ("lambda s: int((s.alphas_cumprod ** 0.5 > 0.5).sum())", "variances"),
            ("lambda s: half_dark(s) + 5", "a step before already"),
            ("lambda s: half_dark(s) - 5", "is still"),
        ],
        "check_std_of_xt": [
            (
                "lambda std, t, c: float(c.alphas_cumprod[t]) ** .5 * std + (1 - float(c.alphas_cumprod[t])) ** .5",
                "their squares do",
            ),
            ("lambda std, t, c: 1.0", "these have 0.5"),
            (
                "lambda std, t, c: float(c.alphas_cumprod[t]) * std ** 2 + 1 - float(c.alphas_cumprod[t])",
                "what is wanted",
            ),
        ],
    },
    "04_unet": {
        "check_two_conditions": [
            ("lambda h, a, b, c: (h * a + b) * c", "differences from 1"),
            ("lambda h, a, b, c: h * (1 + a) * (1 + c) + b", "too late"),
            ("lambda h, a, b, c: h", "another result"),
        ],
        "check_incoming": [
            ("lambda widths, n: [1] * (n * len(widths))", "one more a level"),
            ("lambda widths, n: [2 * w for w in reversed(widths) for _ in range(n + 1)]", "different widths"),
            ("lambda widths, n: [1]", "[1] came"),
        ],
        "check_weights_without": [
            ("lambda q, k, hidden: attention_weights(q, k)", "still seen"),
            ("lambda q, k, hidden: attention_weights(q, k) * ~hidden", "before the softmax"),
            ("lambda q, k, hidden: ((q @ k.transpose(-1, -2)) / 2 * ~hidden).softmax(-1)", "minus infinity"),
            ("lambda q, k, hidden: attention_weights(q, k) * ~hidden[:, None]", "not those that look"),
        ],
    },
    "05_autoencoder": {
        "check_head": [
            ("lambda h, norm, to_z: to_z(F.silu(norm(h)))", "is wanted"),
            ("lambda h, norm, to_z: to_z(F.silu(norm(h).mean((2, 3), keepdim=True))).flatten(1)", "too early"),
            ("lambda h, norm, to_z: to_z(norm(h).mean((2, 3), keepdim=True)).flatten(1)", "SiLU is missing"),
            ("lambda h, norm, to_z: to_z(h.mean((2, 3), keepdim=True)).flatten(1)", "in this order"),
        ],
        "check_stamp": [
            ("lambda: {**stamp(), 'enc_channel_mult': (1, 2, 3)}", "8×8"),
            ("lambda: {**stamp(), 'model_channels': 64}", "three quarters"),
            ("lambda: {**stamp(), 'image_size': 64}", "image_size is to be 32"),
        ],
        "check_share_of_code": [
            ("lambda grid: share_of_code(grid.transpose(0, 1))", "share of the noise"),
            ("lambda grid: float(grid.mean(1).var(unbiased=False) / grid.var(unbiased=False))", "within one picture"),
            ("lambda grid: .5", "0.50 came"),
        ],
    },
    "06_sampling": {
        "check_my_step": [
            ("lambda x0, eps, a, b: a ** 2 * x0 + b ** 2 * eps", "variances"),
            ("lambda x0, eps, a, b: b * x0 + a * eps", "exchanged"),
            ("lambda x0, eps, a, b: x0", "not the point at that level"),
        ],
        "check_undo": [
            (
                """def wrong(R, x, y, n):
    for _ in range(n): y = y - (x - R(y))
    return y""",
                "runs away",
            ),
            ("lambda R, x, y, n: R(undo(R, x, y, n))", "x again"),
            ("lambda R, x, y, n: y + (x - R(y)) / 2", "beside x"),
        ],
        "check_between": [
            ("lambda a, b, w: (1 - w) * a + w * b", "partly cancel"),
            ("lambda a, b, w: between(a, b, w) / a.norm()", "has length 1"),
            (
                """def wrong(a, b, w):
    m = (1 - w) * a + w * b
    return m / m.norm() * ((1 - w) * a.norm() + w * b.norm())""",
                "the pace is not",
            ),
            ("lambda a, b, w: between(b, a, w)", "at w = 0 it must be a"),
        ],
    },
    "06a_resuming": {
        "check_noise": [
            ("lambda seed, step, b, i, n: my_noise(seed, step, b, 0, n)", "same noise"),
            (
                "lambda seed, step, b, i, n: "
                "torch.randn(b // n, 2, generator=torch.Generator().manual_seed(step_seed(seed, step, i)))",
                "process in the seed",
            ),
            ("lambda seed, step, b, i, n: torch.randn(b // n, 2)", "could not go on"),
            ("lambda seed, step, b, i, n: my_noise(seed, 0, b, i, n)", "every step"),
            ("lambda seed, step, b, i, n: my_noise(0, step, b, i, n)", "every seed"),
            ("lambda seed, step, b, i, n: my_noise(seed, step, b, 0, 1)", "keeps (2, 2)"),
        ],
        "check_save_whole": [
            ("lambda path, pieces: path.write_text('new')", "and not 'new text'"),
            (
                """def wrong(path, pieces):
    with open(path, "w") as f:
        for piece in pieces: f.write(piece)""",
                "write beside it",
            ),
            (
                """def wrong(path, pieces):
    with open(path.with_name("part"), "w") as f:
        for piece in pieces: f.write(piece)
    path.write_text(path.with_name("part").read_text())""",
                "another file is left",
            ),
            (
                """def wrong(path, pieces):
    path.unlink()
    path.write_text("".join(pieces))""",
                "no file at all",
            ),
        ],
        "check_rows_before": [
            ("lambda text, step: [json.loads(line) for line in text.splitlines()]", "would stand there twice"),
            ("lambda text, step: [r for r in map(json.loads, text.splitlines()) if r['step'] <= step]", "cut off"),
            ("lambda text, step: [r for r in rows_before(text, step) if r['step'] < step]", "3 and 6 are wanted"),
        ],
    },
    "07_training": {
        "check_running": [
            ("lambda values, decay: []", "one after each"),
            ("lambda values, decay: running([0., *values], decay)[1:]", "starts from 0"),
            ("lambda values, decay: running(values, 1 - decay)", "exchanged"),
        ],
        "check_clipped": [
            ("lambda grads, largest: grads", "still 5.0"),
            ("lambda grads, largest: [g * min(1., largest / float(g.norm())) for g in grads]", "one norm, one factor"),
            (
                "lambda grads, largest: [g * largest / torch.stack([o.norm() for o in grads]).norm() for g in grads]",
                "scale by at most 1",
            ),
        ],
        "check_denoising_loss": [
            ("lambda net, batch, generator: F.mse_loss(net(batch['x']), batch['x'])", "in a dict"),
            ("lambda net, batch, generator: {'loss': F.mse_loss(net(batch['x']), batch['x'])}", "was the noise added"),
            (
                "lambda net, batch, generator: "
                "{'loss': F.mse_loss(net(batch['x'] + .1 * torch.randn(batch['x'].shape)), batch['x'])}",
                "draw from the generator alone",
            ),
            (
                "lambda net, batch, generator: "
                "{'loss': (net(batch['x'] + .1 * generator.randn(1)) - batch['x']).square().sum()}",
                "take means",
            ),
            (
                "lambda net, batch, generator: {'loss': F.mse_loss(net(batch['x'] + generator.randn(1)), batch['x'])}",
                "size of 0.1",
            ),
        ],
    },
    "07a_autoencoder_training": {
        "check_my_steps": [
            ("lambda u, upper, T: torch.where(upper, .5 + u / 2, u) * T", "steps are integers"),
            ("lambda u, upper, T: (u * T).long()", "in the less noisy half"),
            ("lambda u, upper, T: (torch.where(upper, .5 + u, u) * T).long().clamp(max=T - 1)", "not spread evenly"),
            ("lambda u, upper, T: ((.5 + u / 2) * T).long()", "unmarked samples are spread"),
        ],
        "check_balanced": [
            ("lambda answer, truth: (answer == truth).float().mean().item()", "not over the faces"),
            (
                "lambda answer, truth: torch.stack([(answer[truth == v] == v).float().mean() "
                "for v in torch.cat([answer, truth]).unique()]).nan_to_num().mean().item()",
                "the truth decides",
            ),
            ("lambda answer, truth: float(balanced(answer, truth) ** 2)", "of the ones none"),
        ],
        "check_colour_term": [
            ("lambda read, seen: F.mse_loss(read, seen.x0.mean((2, 3)))", "gives two things"),
            ("lambda read, seen: ((read - seen.x0.mean((2, 3))).square().mean(1), {})", "one number for the whole"),
            (
                "lambda read, seen: (F.mse_loss(read, seen.x0.mean((1, 2, 3))[:, None].expand(-1, 3)), {})",
                "one mean for each channel",
            ),
            ("lambda read, seen: ((read - seen.x0.mean((2, 3))).square().sum(), {})", "so that processes can"),
            ("lambda read, seen: (F.mse_loss(read, seen.x0.mean((2, 3))), {'loss': 0})", 'as {"colour": value}'),
        ],
    },
    "07b_latent": {
        "check_one_by_one": [
            ("lambda z, n, generator: torch.randn(n, z.shape[1], generator=generator)", "the means are not"),
            (
                "lambda z, n, generator: z.mean(0) + z.var(0) * torch.randn(n, z.shape[1], generator=generator)",
                "std, not var",
            ),
            (
                "lambda z, n, generator: z.mean(0) + z.std(0) * torch.randn(n, 1, generator=generator)",
                "each has its own draw",
            ),
            ("lambda z, n, generator: one_by_one(z, n, make_generator(0))", "another generator"),
        ],
        "check_code_step": [
            (
                """def wrong(u, eps, now, then):
    clean = ((u - (1 - now) ** .5 * eps) / now ** .5).clamp(-1, 1)
    return then ** .5 * clean + (1 - then) ** .5 * eps""",
                "do not clip",
            ),
            ("lambda u, eps, now, then: (u - (1 - now) ** .5 * eps) / now ** .5", "the next level only"),
            (
                """def wrong(u, eps, now, then):
    return then * (u - (1 - now) ** .5 * eps) / now ** .5 + (1 - then) * eps""",
                "share of variance",
            ),
        ],
        "check_copies": [
            ("lambda new, old, near: float((torch.cdist(new, old) < near).float().mean())", "the nearest decides"),
            ("lambda new, old, near: float((torch.cdist(new, old).amin(1) < near).sum())", "that is how many"),
            (
                "lambda new, old, near: float((torch.cdist(new, old).amin(0) < near).float().mean())",
                "over the old codes",
            ),
        ],
    },
    "08_directions": {
        "check_conditional": [
            (
                """def wrong(w, W):
    for n in F.normalize(W, dim=1): w = w - (w @ n) * n
    return F.normalize(w, dim=0)""",
                "at right angles",
            ),
            ("lambda w, W: 3 * conditional(w, W)", "length 1"),
            ("lambda w, W: -conditional(w, W)", "less probable"),
            ("lambda w, W: conditional(w + torch.roll(w, 1) / 2, W)", "could rise faster"),
        ],
        "check_mean_direction": [
            ("lambda u, y: u.mean(0)", "not of length 1"),
            ("lambda u, y: F.normalize(u[y == 1].mean(0) - u[y != 1].mean(0), dim=0)", "the unknown faces"),
            ("lambda u, y: -mean_direction(u, y)", "leads away"),
        ],
        "check_first_convinced": [
            ("lambda p: (p >= .98).float().argmax(0)", "never convinced"),
            ("lambda p: first_convinced(p, .985)", "at least, not more"),
            ("lambda p: (p < .98).sum(0).clamp(max=len(p) - 1)", "before it fell back"),
        ],
    },
    "08a_perceptual": {
        "check_distance": [
            (
                "lambda a, b: torch.stack([(p - q).square().sum(1).mean((1, 2)) for p, q in zip(a, b)]).mean(0)",
                "length 1 first",
            ),
            (
                """def wrong(a, b):
    pairs = [(F.normalize(p, dim=1), F.normalize(q, dim=1)) for p, q in zip(a, b)]
    return torch.stack([(p - q).square().sum((1, 2, 3)) for p, q in pairs]).mean(0)""",
                "mean over places",
            ),
            ("lambda a, b: my_distance(a, b).mean()", "one number for each pair"),
        ],
        "check_descend": [
            ("lambda x, target: 2 * x - my_descend(x, target)", "against the gradient"),
            (
                """def wrong(x, target, step=.01):
    x = x.detach().clone().requires_grad_()
    g, = torch.autograd.grad(perceptual.distance(x, target).sum(), x)
    return (x - step * g).detach()""",
                "divide the gradient",
            ),
            ("lambda x, target: my_descend(x, target).requires_grad_()", "detach it"),
        ],
        "check_share": [
            (
                "lambda d, x, y: float(d(x, y).mean() / torch.stack([d(x, x.roll(k, 0)) for k in range(len(x))]).mean())",
                "with itself too",
            ),
            ("lambda d, x, y: 1 / my_share(d, x, y)", "upside down"),
            ("lambda d, x, y: float(d(x, y).mean())", "the distance itself"),
            ("lambda d, x, y: float(d(x, y).mean() / d(x[:-1], x[1:]).mean())", "take all others"),
        ],
    },
    "08b_known": {
        "check_alone": [
            ("lambda z, known: (z / known.std(0)).square().mean(1).sqrt()", "subtract it"),
            ("lambda z, known: ((z - known.mean(0)) / known.std(0)).square().sum(1).sqrt()", "averaged, not summed"),
            ("lambda z, known: (z - known.mean(0)).square().mean(1).sqrt()", "divide by it"),
            ("lambda z, known: known_faces(known[:3000], known[3000:])(z)", "each has its own spread here"),
            ("lambda z, known: alone(z, known)[:, None]", "one for each code"),
        ],
        "check_limit": [
            ("lambda d, share: float(d.sort().values[int(share * len(d))])", "upside down"),
            ("lambda d, share: float(d.sort().values[len(d) - 7])", "at most 5 may"),
            ("lambda d, share: float(d.max())", "it could be nearer"),
            ("lambda d, share: limit_of(d, max(share, .01))", "with a share of 0"),
        ],
        "check_mistakes": [
            ("lambda known, strange, limit: ((known > limit).sum(), (strange <= limit).sum())", "counts are no shares"),
            ("lambda known, strange, limit: mistakes(known, strange, limit)[::-1]", "the other way round"),
            (
                "lambda known, strange, limit: ((known <= limit).float().mean(), (strange <= limit).float().mean())",
                "the first share is of those that lie beyond",
            ),
            (
                "lambda known, strange, limit: ((known > limit).float().mean(), (strange > limit).float().mean())",
                "the second share is of those that pass",
            ),
        ],
    },
    "09_styles": {
        "check_mix_full": [
            ("lambda a, b, t: a.mix(b, t)", "plain mix"),
            (
                """def wrong(a, b, t):
    m, n = a.mix(b, t), lambda x: x.flatten(1).norm(dim=1)
    factor = lambda p, q, r: ((1 - t) * n(p) + t * n(q)) / n(r)
    return StyleCode(m.vector * factor(a.vector, b.vector, m.vector)[:, None],
                     m.tokens * factor(a.tokens, b.tokens, m.tokens)[:, None, None])""",
                "rescaled apart",
            ),
        ],
        "check_query": [
            ("lambda tags, tag, value: 2 * tags.index(tag) + tags[tag].index(value)", "three values"),
            ("lambda tags, tag, value: tags[tag].index(value)", "share a number"),
        ],
        "check_diversity": [
            ("lambda c: torch.cdist(c.flat(), c.flat()).mean().item()", "to itself"),
            ("lambda c: torch.cdist(c.vector, c.vector).sum().item() / 6", "only the vector"),
        ],
    },
    "10_modulation": {
        "check_blend": [
            ("lambda f, e, m: e * m + f * (1 - m)", "wrong way round"),
            ("lambda f, e, m: e + f * m", "make room"),
        ],
        "check_mean": [
            ("lambda layer, q, k, v: v.mean(2, keepdim=True)", "every place needs a result"),
            ("lambda layer, q, k, v: k.mean(2, keepdim=True).expand_as(q)", "mean of the keys"),
        ],
        "check_gain": [
            ("lambda z, z_new, gain: z_new", "no effect"),
            ("lambda z, z_new, gain: z + gain * z_new", "no step"),
            ("lambda z, z_new, gain: z + gain * (z_new - z)", "not to the faces"),
        ],
    },
    "11_removal": {
        "check_least_moved": [
            ("lambda a, b: a - a.mean() + b.mean()", "the mean alone has moved"),
            ("lambda a, b: b.mean() + (a - a.mean()) * b.var() / a.var()", "not the variance"),
            ("lambda a, b: b.mean() - (a - a.mean()) * b.std() / a.std()", "people have changed places"),
            ("lambda a, b: b[: len(a)]", "people have changed places"),
            ("lambda a, b: b.sort().values[a.argsort().argsort()]", "not the very points of b"),
            ("lambda a, b: a * b.std() / a.std() + 3 * b.mean()", "their mean is now"),
        ],
        "check_flipped_share": [
            ("lambda read, targets, labels: (read == targets).float().mean(0)", "counts as flipped"),
            (
                "lambda read, targets, labels: ((read == targets) & (labels >= 0)).float().mean(0)",
                "the three that are known",
            ),
            (
                "lambda read, targets, labels: ((read != labels) & (labels >= 0)).sum(0) / (labels >= 0).sum(0)",
                "the new one has not come",
            ),
            ("lambda read, targets, labels: (read == targets)[labels >= 0].float().mean()", "a share for every tag"),
            (
                "lambda read, targets, labels: ((read == targets) & (labels >= 0)).sum(0) / (labels >= 0).sum(0)",
                "known of nobody",
            ),
        ],
        "check_leak": [
            (
                """def wrong(codes, style):
    line = torch.cat([codes, torch.ones(len(codes), 1)], 1)
    error = (line @ torch.linalg.lstsq(line, style[:, None]).solution)[:, 0] - style
    return 1 - float(error.square().mean() / style.var())""",
                "in the faces that it was fitted to",
            ),
            (
                """def wrong(codes, style):
    half = len(codes) // 2
    w = torch.linalg.lstsq(codes[:half], style[:half, None]).solution
    return max(0., 1 - float(((codes[half:] @ w)[:, 0] - style[half:]).square().mean() / style[half:].var()))""",
                "needs a constant",
            ),
            ("lambda codes, style: leak(codes, style) ** .5", "that is the correlation"),
            ("lambda codes, style: 1 - (1 - leak(codes, style)) ** .5", "half of the variance leaks here"),
        ],
    },
    "11a_consistency": {
        "check_told_apart": [
            ("lambda h, noise: told_apart(h, 0 * noise)", "noisy numbers against the clean ones"),
            ("lambda h, noise: told_apart(h + noise, 0 * noise)", "noisy numbers against the clean ones"),
            (
                "lambda h, noise: ((h + noise) @ h.T).argmax(1).eq(torch.arange(len(h))).float().mean().item()",
                "no product",
            ),
            (
                """def wrong(h, noise):
    far = torch.cdist(h + noise, h).fill_diagonal_(9999.)
    return far.argmin(1).eq(torch.arange(len(h))).float().mean().item()""",
                "has to be among those",
            ),
            ("lambda h, noise: told_apart(h, noise) * len(h)", "from 0 to 1"),
        ],
        "check_swapped": [
            ("lambda ds, i, r, tag: ds[r]['image']", "the reference herself"),
            ("lambda ds, i, r, tag: ds.counterfactual(i, tag, 'with')", "does not look at the style code"),
            ("lambda ds, i, r, tag: ds.counterfactual(r, tag, 'with', style_from=i)", "the wrong way round"),
            (
                "lambda ds, i, r, tag: ds.counterfactual(i, tag, ds.tags[tag].values[1 if tag == 'Eyeglasses' else "
                "int(ds.labels[i, ds.tags.index(tag)])], style_from=r)",
                "ask which one r has",
            ),
        ],
        "check_amplitude": [
            (
                "lambda gain, noise, price: max(0., noise * (2 * gain / price) ** .5 - noise ** 2)",
                "the best amplitude is its root",
            ),
            ("lambda gain, noise, price: max(0., noise * (gain / price) ** .5 - noise ** 2) ** .5", "too quiet"),
            ("lambda gain, noise, price: (noise * (2 * gain / price) ** .5) ** .5", "too loud"),
            ("lambda gain, noise, price: max(0., (2 * gain / price) ** .5 - 1) ** .5", "the noise has a say"),
            (
                "lambda gain, noise, price: (noise * (2 * gain / price) ** .5 - noise ** 2) ** .5",
                "do not send it at all",
            ),
        ],
    },
    "11b_ablations": {
        "check_style_arrives": [
            ("lambda a, b, c, d: float((b * d).sum() / d.square().sum())", "compare changes, not pictures"),
            ("lambda a, b, c, d: (b - a).abs().mean() / (d - c).abs().mean()", "the sizes agree, the changes do not"),
            ("lambda a, b, c, d: abs(style_arrives(a, b, c, d))", "must not count as arrived"),
            (
                "lambda a, b, c, d: style_arrives(a, b, c, d) * abs(style_arrives(a, b, c, d))",
                "only the truth is squared",
            ),
            ("lambda a, b, c, d: style_arrives(c, d, a, b)", "not by that of the result"),
            ("lambda a, b, c, d: sum(style_arrives(*o) for o in zip(a, b, c, d)) / len(a)", "one factor for the batch"),
        ],
        "check_style_read": [
            (
                """def wrong(codes, factor, value):
    line = torch.cat([codes, torch.ones(len(codes), 1)], 1)
    error = (line @ torch.linalg.lstsq(line, factor[:, None]).solution)[:, 0] - factor
    return 1 - float(error.square().mean() / factor.var())""",
                "faces that it was not fitted to",
            ),
            ("lambda codes, factor, value: style_read(codes, factor, 0 * value)", "a line for each value"),
            (
                """def wrong(codes, factor, value):
    found = []
    for v in value.unique():
        x, y = codes[value == v], factor[value == v]
        half = len(y) // 2
        w = torch.linalg.lstsq(x[:half], y[:half, None]).solution
        found.append(1 - float(((x[half:] @ w)[:, 0] - y[half:]).square().mean() / y[half:].var()))
    return max(0., sum(found) / len(found))""",
                "needs a constant",
            ),
            (
                "lambda codes, factor, value: max(style_read(codes[value == v], factor[value == v], value[value == v]) "
                "for v in value.unique())",
                "the mean over the values",
            ),
            (
                "lambda codes, factor, value: sum(style_read(codes[value == v], factor[value == v], value[value == v]) ** .5 "
                "for v in value.unique()) / len(value.unique())",
                "that is the correlation",
            ),
        ],
        "check_can_be_told": [
            ("lambda whole, other: whole != other", "another seed may turn that round"),
            (
                "lambda whole, other: sum(other) / len(other) > sum(whole) / len(whole) and can_be_told(whole, other)",
                "take its absolute value",
            ),
            (
                "lambda whole, other: abs(sum(whole) - sum(other)) / 3 > 2 * float(torch.tensor(whole).std())",
                "the seeds of the ablation spread",
            ),
            (
                "lambda whole, other: abs(sum(whole) - sum(other)) / 3 > 2 * float(torch.tensor(other).std())",
                "the seeds of the whole method spread",
            ),
            (
                """def wrong(whole, other):
    a, b = torch.tensor([whole, other])
    return bool((a.mean() - b.mean()).abs() > (a.var() + b.var()).sqrt())""",
                "ask for twice",
            ),
            (
                """def wrong(whole, other):
    a, b = torch.tensor([whole, other])
    return bool((a.mean() - b.mean()).abs() > 2 * ((a.var() + b.var()) / len(a)).sqrt())""",
                "not the error of their mean",
            ),
            (
                """def wrong(whole, other):
    a, b = torch.tensor([whole, other])
    return bool((a.mean() - b.mean()).abs() > 2 * (a.var(unbiased=False) + b.var(unbiased=False)).sqrt())""",
                "divides by 2",
            ),
            (
                """def wrong(whole, other):
    a, b = torch.tensor([whole, other])
    return bool((a.mean() - b.mean()).abs() > 2 * (a.std() + b.std()))""",
                "the variances are added",
            ),
        ],
    },
    "11c_masks": {
        "check_best": [
            ("lambda x, y, p, a: torch.ones_like(x[:, :1])", "everything is open"),
            ("lambda x, y, p, a: (p * (x - y).square().sum(1, keepdim=True) > a).float()", "the other way round"),
            ("lambda x, y, p, a: ((x - y).square() > a / p).float()", "keep their dimension"),
            ("lambda x, y, p, a: best_mask(x, y, 100., 1.)", "has no say"),
        ],
        "check_either": [
            ("lambda a, b: a * b", "cut off"),
            ("lambda a, b: a + b", "nowhere more than 1"),
            ("lambda a, b: 1 - (1 - a) * (1 - b)", "twice the same"),
        ],
        "check_drift": [
            ("lambda mask, z, z2, g: (mask(z, z + g * (z2 - z)) - mask(z, z)).abs().mean()", "with gain 1"),
            ("lambda mask, z, z2, g: (mask(z, z2) - mask(z, z + g * (z2 - z))).mean()", "absolute value"),
            ("lambda mask, z, z2, g: drift(mask, z, z2, g) * 2", "half the gain is half the step"),
        ],
    },
    "11d_parts": {
        "check_lend_code": [
            (
                "lambda parts, x, y, n: parts.render(parts.invert(x, num_inference_steps=n), parts.encode(x), n)",
                "render under the codes of y",
            ),
            ("lambda parts, x, y, n: lend_code(parts, y, x, n)", "the roles are exchanged"),
            (
                "lambda parts, x, y, n: parts.render(parts.invert(x, parts.encode(y), n), parts.encode(y), n)",
                "the noise of x belongs to the code of x",
            ),
        ],
        "check_share_read": [
            (
                "lambda parts, x, labels: float(torch.cat([p.amax(1) for p in parts.read(parts.encode(x)).values()]).mean())",
                "compare the answers with them",
            ),
            (
                "lambda parts, x, labels: float((parts.mlp.predict(parts.encode(x)) == labels)[:, 0].float().mean())",
                "one tag is not all",
            ),
            ("lambda parts, x, labels: share_read(parts, x, labels) / 2", "the most probable value"),
        ],
        "check_exchange": [
            (
                """def wrong(folder, fill):
    shutil.rmtree(folder)
    folder.mkdir()
    fill(folder)""",
                "cost the old folder",
            ),
            ("lambda folder, fill: fill(folder)", "the new one takes its place"),
            (
                """def wrong(folder, fill):
    new = folder.with_name("new")
    new.mkdir()
    fill(new)
    shutil.rmtree(folder)
    new.rename(folder)""",
                "half a folder lies about",
            ),
        ],
    },
    "11e_costs": {
        "check_conv_operations": [
            ("lambda size, a, b, k: size**2 * a * b * k**2", "half of it"),
            ("lambda size, a, b, k: 2 * size * a * b * k**2", "256 places"),
        ],
        "check_largest_batch": [
            ("lambda weights, kept, gigabytes: int(0.9 * gigabytes * 1e9 / kept)", "the weights take room too"),
            (
                "lambda weights, kept, gigabytes: int((0.9 * gigabytes * 1e9 - weights * built.BYTES_PER_WEIGHT) / kept)",
                "0 faces, not for fewer",
            ),
        ],
        "check_steps_in_an_hour": [
            ("lambda step, batch, rate: int(rate * 1e12 / (step * batch))", "a second's worth"),
            ("lambda step, batch, rate: int(3600 * rate * 1e12 / step)", "a whole batch of faces"),
        ],
    },
    "12_edits": {
        "check_weaker": [
            ("lambda edits, share: [replace(e, gain=share) for e in edits]", "put in the gain's place"),
            ("lambda edits, share: [Edit(e.tag, e.value, gain=share * e.gain) for e in edits]", "her glasses are gone"),
            (
                """def wrong(edits, share):
    for e in edits:
        object.__setattr__(e, "gain", share * e.gain)
    return edits""",
                "make a new one",
            ),
        ],
        "check_can_do": [
            (
                "lambda parts, edit, method: set(GUIDANCES[edit.guidance()].needs) <= set(parts)",
                "ask edit.guidance(method)",
            ),
            (
                "lambda parts, edit, method: bool(set(GUIDANCES[edit.guidance(method)].needs) & set(parts))",
                "one of two networks",
            ),
            (
                "lambda parts, edit, method: set(GUIDANCES[edit.guidance(method)].needs) == set(parts)",
                "more than is needed",
            ),
        ],
        "check_left_to_source": [
            ("lambda masks: torch.zeros_like(masks[0])", "the source stays whole"),
            ("lambda masks: 1 - sum(masks)", "two halves do not make a whole"),
        ],
    },
    "12a_pipeline": {
        "check_edit_by_hand": [
            ("lambda pipe, x, edits, n: x", "the source itself"),
            (
                """def wrong(pipe, x, edits, n):
    z = pipe.encode(x)
    return pipe.render(pipe.invert(x, z, n), z, n)""",
                "render it under the edited code",
            ),
            (
                """def wrong(pipe, x, edits, n):
    z = pipe.edit(pipe.encode(x), edits)
    return pipe.render(pipe.invert(x, z, n), z, n)""",
                "invert under its own z",
            ),
        ],
        "check_chain": [
            ("lambda pipe, x, steps: pipe.encode(x)", "has not moved"),
            (
                """@torch.no_grad()
def wrong(pipe, x, steps):
    feats, z, head = pipe.features(x), pipe.encode(x), pipe.autoencoder.head
    return z + sum(g * (head(pipe.modulation(feats, t, v, c)) - head(feats)) for t, v, c, g in steps)""",
                "F moves on with each edit",
            ),
            (
                "lambda pipe, x, steps: chain_by_hand(pipe, x, [(t, v, c, 1.) for t, v, c, _ in steps])",
                "the gains are missing",
            ),
        ],
        "check_head_calls": [
            ("lambda kinds: 1 + 2 * kinds.count('style')", "head(F) of the source is z"),
            ("lambda kinds: 1 + kinds.count('style')", "the first style has moved F"),
            ("lambda kinds: max(1, 2 * len(kinds))", "it costs nothing here"),
        ],
    },
    "12b_batch": {
        "check_each_or_its_error": [
            ("lambda f, items, size: each_or_its_error(f, items, 1)", "never two at a time"),
            (
                """def wrong(f, items, size):
    out = []
    for batch in batched(items, size):
        try:
            out += f(list(batch))
        except Exception as e:
            out += [e] * len(batch)
    return out""",
                "was lost with its neighbour",
            ),
            (
                "lambda f, items, size: [o for o in each_or_its_error(f, items, size) if not isinstance(o, Exception)]",
                "4 results for 5 items",
            ),
        ],
        "check_free_name": [
            ("lambda stem, taken: stem", "would be overwritten"),
            ("lambda stem, taken: stem if stem not in taken else stem + '-1'", "has the number 2"),
            ("lambda stem, taken: stem if stem not in taken else f'{stem}-2'", "go on until a name is free"),
            (
                "lambda stem, taken: stem if stem not in taken else f'{stem}-{len(taken) + 1}'",
                "not the number of files",
            ),
        ],
        "check_best_strength": [
            ("lambda rows: max(rows, key=lambda r: r['target'])['strength']", "whatever else it breaks"),
            ("lambda rows: max(rows, key=lambda r: r['others'])['strength']", "may also do nothing"),
            ("lambda rows: max(rows, key=lambda r: r['target'] + r['others'])['strength']", "nearest to 1"),
        ],
    },
    "12c_alignment": {
        "check_square_side": [
            ("lambda p: square_side(p) / 2", "half a side"),
            ("lambda p: 4 * np.hypot(*(p[1] - p[0]))", "the larger of"),
            ("lambda p: 3.6 * np.hypot(*(p[3:].mean(0) - p[:2].mean(0)))", "for a face with wide eyes is 400"),
        ],
        "check_in_crop": [
            ("lambda m, p: (m @ [*p, 1])[:2]", "invert the matrix"),
            ("lambda m, p: np.linalg.inv(m)[:2, :2] @ p", "not shifted"),
            ("lambda m, p: in_crop(m, p) + 1", "is not where the nose is"),
        ],
        "check_with_change": [
            ("lambda photo, plain, edited: edited", "cannot draw of the photograph is lost"),
            ("lambda photo, plain, edited: photo.astype(int) + edited - plain", "clip before it becomes bytes"),
            ("lambda photo, plain, edited: photo + (edited - plain)", "bytes run over"),
        ],
    },
    "12d_photos": {
        "check_largest": [
            ("lambda faces: max(range(len(faces)), key=lambda i: np.ptp(faces[i][:, 0]))", "its mouth is wide"),
            ("lambda faces: max(range(len(faces)), key=lambda i: faces[i][1, 0] - faces[i][0, 0])", "has no width"),
        ],
        "check_edit_alone": [
            ("lambda o, s, b, m: o - s", "without any edit"),
            ("lambda o, s, b, m: o - b", "the source is not b"),
            ("lambda o, s, b, m: m * (o - b)", "o is half source"),
        ],
        "check_stored_place": [
            ("lambda x, y, w: (y, x)", "mirror image"),
            ("lambda x, y, w: (3 - y, x)", "the other way"),
            ("lambda x, y, w: (y, w - x)", "counted from 0"),
        ],
    },
    "13_maps": {
        "check_token_spread": [
            ("lambda w, k, side: w[:, k].reshape(side, side)", "what each place takes"),
            ("lambda w, k, side: token_spread(w, k, side).T", "rows and columns"),
            ("lambda w, k, side: w[:, k] / w[:, k].sum()", "a map (4, 4) is wanted"),
        ],
        "check_keys_in_use": [
            ("lambda w: -(w * w.clamp_min(1e-12).log2()).sum(-1).mean()", "entropy in bits"),
            ("lambda w: 2 ** -(w * w.clamp_min(1e-12).log2()).sum(-1).mean()", "before the power"),
            ("lambda w: (2 ** -(w * w.log2()).sum(-1)).mean()", "clamp the weight"),
        ],
        "check_share_on": [
            ("lambda s, mask: (s * F.adaptive_max_pool2d(mask[None].float(), len(s))[0]).sum()", "counted whole"),
            ("lambda s, mask: mask.float().mean()", "area of the part"),
        ],
    },
    "13a_attention": {
        "check_step_numbers": [
            ("lambda asked: list(range(len(asked)))", "calls were counted"),
            ("lambda asked: [n + 1 for n in step_numbers(asked)]", "count from 0"),
            (
                """def wrong(asked):
    n, numbers = 0, []
    for i, t in enumerate(asked):
        n += i > 0 and t != asked[i - 1]
        numbers.append(n)
    return numbers""",
                "the level rose",
            ),
        ],
        "check_bytes_of": [
            ("lambda side, tokens, heads, steps: side * tokens * heads * steps * 4", "side · side places"),
            ("lambda side, tokens, heads, steps: side**2 * tokens * heads * steps", "a float32 takes four bytes"),
            ("lambda side, tokens, heads, steps: side**4 * heads * steps * 4", "a self-attention"),
        ],
        "check_told": [
            ("lambda w, tokens, avoid: w", "both branches came back"),
            (
                "lambda w, tokens, avoid: w[:len(avoid)] if torch.equal(tokens[:len(avoid)], avoid) else w",
                "what to avoid",
            ),
            ("lambda w, tokens, avoid: w[len(avoid):]", "four pictures without guidance"),
        ],
    },
    "14_judges": {
        "check_rank": [
            ("lambda q, gallery, who: my_rank(q, gallery, who) - 1", "count from 1"),
            ("lambda q, gallery, who: torch.where((q @ gallery.T).argmax(1) == who, 1, 1)", "large cosines are near"),
            ("lambda q, gallery, who: torch.where((q @ gallery.T).argmax(1) == who, 1, len(gallery))", "ranks 1 to 20"),
        ],
        "check_shows": [
            ("lambda render: True", "so it does not show"),
            ("lambda render: False", "so it shows"),
            ("lambda render: abs(float(render(.1).mean() - render(.9).mean())) > 1e-6", "pixel by pixel"),
            ("lambda render: (render(.1) != render(.9)).any()", "not a tensor"),
        ],
        "check_worst": [
            ("lambda read, labels: float((read == labels).float().mean(0).min())", "pass over the unknown"),
            ("lambda read, labels: float((read == labels)[labels >= 0].float().mean())", "a mean over tags or faces"),
            (
                "lambda read, labels: sum(float((r == y)[y >= 0].float().mean()) for r, y in zip(read.T, labels.T)) / 3",
                "a mean over tags or faces",
            ),
            ("lambda read, labels: float(((read == labels) | (labels < 0)).float().mean(0).min())", "two faces alone"),
        ],
    },
    "14a_metrics": {
        "check_share": [
            ("lambda d, t: float(d.var(1).mean() / t.var(1).mean())", "not variances"),
            ("lambda d, t: float(d.flatten(0, 1).std(0).mean() / t.flatten(0, 1).std(0).mean())", "within each face"),
            ("lambda d, t: float(d.var(1).mean(0).sqrt().mean())", "must give 1"),
        ],
        "check_interval": [
            ("lambda h: (float(h.float().mean()), 1.96 * (.75 * .25) ** .5 / len(h))", "halve the interval"),
            ("lambda h: (float(h.float().mean()), 1.96 * (.75 / len(h)) ** .5)", "p (1 − p) under the root"),
            ("lambda h: (float(h.sum()), my_interval(h)[1])", "the mean of the hits"),
        ],
        "check_gained": [
            (
                "lambda edited, source, truth: float((psnr(edited, source) - psnr(truth, source)).mean())",
                "has gained nothing",
            ),
            ("lambda edited, source, truth: gained(source, edited, truth)", "not the other way round"),
            ("lambda edited, source, truth: gained(edited, source, truth) / 2", "both distances are to the truth"),
            (
                "lambda edited, source, truth: float(10 * ((source - truth).square().mean() / "
                "(edited - truth).square().mean()).log10())",
                "average the decibels",
            ),
        ],
    },
    "14b_without_truth": {
        "check_mean_apart": [
            (
                "lambda distance, made: torch.stack([distance(a, b) for a in made for b in made]).mean()",
                "compared with itself too",
            ),
            (
                "lambda distance, made: torch.stack([distance(a, b) for a, b in zip(made, made[1:])]).mean()",
                "only neighbours",
            ),
            (
                "lambda distance, made: torch.stack([distance(a, b) for a, b in combinations(made, 2)]).mean(0)",
                "the mean over faces too",
            ),
        ],
        "check_error_of": [
            ("lambda p, n: p * (1 - p)", "the variance of a single face"),
            ("lambda p, n: (p * (1 - p)) ** 0.5", "the spread of a single face"),
            ("lambda p, n: p / n**0.5", "samples of 200 faces vary"),
        ],
        "check_frechet_1d": [
            ("lambda a, b: (a.mean() - b.mean()) ** 2", "the spreads count too"),
            ("lambda a, b: frechet_1d(a, b) ** 0.5", "no root"),
            ("lambda a, b: (a.mean() - b.mean()) ** 2 + (a.var() - b.var()) ** 2", "not variances"),
        ],
    },
    "14c_segmenter": {
        "check_iou": [
            ("lambda a, b: (a & b).sum() / a.sum()", "counts once in *either*"),
            ("lambda a, b: (a & b).float().mean()", "the share of the picture"),
            ("lambda a, b: (a & b).sum() / (a | b).sum().clamp(min=1)", "nothing to be right about"),
        ],
        "check_off_by_one": [
            ("lambda h: (h - 1) / h", "three rows are in either"),
            ("lambda h: h / (h + 2)", "three rows are in either"),
            ("lambda h: h / (h + 4)", "meets itself nowhere"),
        ],
        "check_lazy": [
            ("lambda truth: torch.mode(truth, 0).values", "once for each of the"),
            ("lambda truth: truth", "it has looked"),
            ("lambda truth: torch.ones_like(truth)", "the most frequent part"),
        ],
    },
    "14d_claims": {
        "check_plus_minus": [
            ("lambda p, n: 1.96 * p * (1 - p) / n", "the root is missing"),
            ("lambda p, n: (p * (1 - p) / n) ** 0.5", "1.96 of them"),
            ("lambda p, n: 1.96 * (p * (1 - p)) ** 0.5", "a mean of n varies less"),
        ],
        "check_faces_for": [
            ("lambda gap, spread: math.ceil(1.96 * spread / gap)", "with the *root*"),
            ("lambda gap, spread: math.ceil((spread / gap) ** 2 - 1e-9)", "one standard deviation"),
            ("lambda gap, spread: 385", "a quarter of the faces"),
        ],
        "check_best_of": [
            ("lambda k, n, p: best_of(k, n, p) * n", "divide by the number of faces"),
            ("lambda k, n, p: (torch.rand(2000, k, n) < p).float().mean()", "the mean of all rows"),
            ("lambda k, n, p: (torch.rand(2000, k, n) < p).float().mean(2).amin(1).mean()", "the worst of them"),
        ],
    },
    "15_widgets": {
        "check_done_by_worker": [
            ("lambda times, duration: list(range(len(times)))", "a queue"),
            ("lambda times, duration: [0, 4]", "the last request"),
            ("lambda times, duration: [0, 5]", "what is wanted"),
        ],
        "check_place_at": [
            ("lambda x, y, rows, columns: (int(x * columns), int(y * rows))", "x runs across"),
            ("lambda x, y, rows, columns: (int(y * rows) + 1, int(x * columns) + 1)", "counted from 0"),
            ("lambda x, y, rows, columns: (int(y * rows), int(x * columns))", "belongs to the last place"),
            ("lambda x, y, rows, columns: (y * rows, x * columns)", "whole numbers"),
        ],
        "check_requests": [
            ("lambda events: events.count('change')", "never meant to be seen"),
            (
                """def wrong(events):
    held, asked = 0, 0
    for e in events:
        held += (e == 'quiet') - (e == 'end')
        asked += e == 'change' and not held
    return asked""",
                "a block asks too",
            ),
            (
                """def wrong(events):
    held, asked = 0, 0
    for e in events:
        held += (e == 'quiet') - (e == 'end')
        asked += e == 'end' or (e == 'change' and not held)
    return asked""",
                "the inner block ends",
            ),
        ],
    },
    "15a_explore": {
        "check_walk": [
            ("lambda a, b, w: (1 - w) * a + w * b", "a straight line"),
            ("lambda a, b, w: np.cos(np.pi * w) * a + np.sin(np.pi * w) * b", "half the angle"),
        ],
        "check_network_calls": [
            ("lambda faces, few, many: len(faces) * (few + many)", "the way down alone"),
            ("lambda faces, few, many: len(faces) * (few + many) + len(set(faces)) * many", "is inverted"),
            ("lambda faces, few, many: 2 * len(faces) * (few + many)", "does not depend on the edit"),
            (
                """def wrong(faces, few, many):
    fresh = sum(f != before for f, before in zip(faces, [None, *faces]))
    return (len(faces) + fresh) * (few + many)""",
                "still lies on her bench",
            ),
        ],
        "check_far_out": [
            ("lambda x, known: float((x - known.mean(0)).pow(2).mean().sqrt())", "rules all others"),
            ("lambda x, known: float((x / known.std(0)).pow(2).mean().sqrt())", "mean of the known faces"),
            ("lambda x, known: float(((x - known.mean(0)) / known.std(0)).norm())", "number of features"),
        ],
    },
    "15b_studio": {
        "check_equal_steps": [
            ("lambda steps, gain: gain * steps", "equal gain"),
            ("lambda steps, gain: gain * steps / steps.norm(dim=1, keepdim=True)", "median of the lengths"),
        ],
        "check_plane_share": [
            (
                """def wrong(codes):
    S = torch.linalg.svdvals(codes)
    return float((S[:2] ** 2).sum() / (S ** 2).sum())""",
                "mean was not taken away",
            ),
            (
                """def wrong(codes):
    S = torch.linalg.svdvals(codes - codes.mean(0))
    return float(S[:2].sum() / S.sum())""",
                "square of the singular values",
            ),
        ],
        "check_ordered": [
            ("lambda points, factor: torch.corrcoef(torch.stack([points[:, 0], factor]))[0, 1] ** 2", "any direction"),
            (
                """def wrong(points, factor):
    fit = points @ torch.linalg.lstsq(points, factor[:, None]).solution[:, 0]
    return 1 - (factor - fit).pow(2).mean() / factor.var()""",
                "the constant is missing",
            ),
            ("lambda points, factor: torch.tensor(1.)", "noise is foretold"),
        ],
    },
    "15c_inside": {
        "check_token_effects": [
            ("lambda weights, values: weights.mean(0)", "that is the attention"),
            ("lambda weights, values: (weights.mean(0)[:, None] * values).norm(dim=1)", "the others share the weight"),
            (
                """def wrong(weights, values):
    weights[:, 0] = 0
    return torch.zeros(len(values))""",
                "changed in place",
            ),
            ("lambda weights, values: token_effects(weights, values).mean()", "one number for each token"),
        ],
        "check_shared_places": [
            ("lambda a, b: torch.minimum(a, b).sum()", "bring each to the sum 1"),
            ("lambda a, b: torch.maximum(a / a.sum(), b / b.sum()).sum()", "not the larger"),
            ("lambda a, b: (a / a.sum() * b / b.sum()).sum()", "a sum of products"),
        ],
        "check_agreement": [
            ("lambda weights: torch.tensor(1.)", "cannot both agree"),
            ("lambda weights: (weights[0].argmax(-1) == weights[1].argmax(-1)).float().mean()", "against each other"),
            ("lambda weights: (weights.argmax(1) == weights.mean(0).argmax(0)).float().mean()", "over the places"),
        ],
        "check_decided_at": [
            (
                "lambda guesses, source: next(i for i, g in enumerate(guesses) "
                "if (g - guesses[-1]).abs().mean() < (g - source).abs().mean())",
                "has gone back",
            ),
            ("lambda guesses, source: decided_at(guesses, source) - 1", "still the source"),
            ("lambda guesses, source: len(guesses) - 1", "nearer to it than to the source is enough"),
            ("lambda guesses, source: decided_at(guesses, source) or 1", "decided from step 0 on"),
        ],
    },
    "16_official": {
        "check_place": [
            ("lambda name: f\"down.{name.split('.')[1]}.{('res', 'attn')[int(name[-1])]}\"", "one too high"),
            ("lambda name: f\"down.{int(name.split('.')[1]) - 1}.res\"", "are not right"),
            (
                "lambda name: f\"down.{int(name.split('.')[1]) - 1}.{('res', 'attn')[int(name[-1])]}\"",
                "no block, so None",
            ),
        ],
        "check_running_mean": [
            (
                "lambda file: {k.lstrip('ema_model.'): v for k, v in file['state_dict'].items() "
                "if k.startswith('ema_model.')}",
                "takes off *letters*",
            ),
            (
                "lambda file: {k.split('model.')[1]: v for k, v in file['state_dict'].items() if 'model.' in k}",
                "as trained",
            ),
            (
                "lambda file: {k.removeprefix('ema_model.'): v for k, v in file['state_dict'].items() "
                "if not k.startswith('model.')}",
                "belongs to no network",
            ),
        ],
        "check_rows": [
            ("lambda t, name: torch.cat([t[k] for k in sorted(t) if k.startswith(name + '.')])", "sorted as words"),
            (
                "lambda t, name: torch.cat([t[k] for k in sorted(t, key=lambda k: int(k.split('.')[-1])) "
                "if k.startswith(name)])",
                "has come along",
            ),
        ],
    },
    "16a_shell": {
        "check_strip": [
            (
                """from latref_nb.core import load_images, save_image
from latref_nb.pipeline import join_images
@command("latref_strip")
def wrong(files:Param("", str, nargs="+", opt=False), out:str=None):
    return len(str(save_image(join_images(load_images(files, 64)), out)))""",
                "the exit code of success is 0",
            ),
            (
                """@command("latref_strip")
def wrong(files:Param("", str, nargs="+", opt=False), out:str=None):
    save_image(join_images(load_images([f for f in files if Path(f).is_file()], 64)), out)""",
                "must end in an error",
            ),
            (
                """@command("latref_strip")
def wrong(files:Param("", str, nargs="+", opt=False), out:str=None):
    save_image(load_images(files, 64)[0], out)""",
                "with a gap of 2",
            ),
        ],
        "check_read_settings": [
            ("lambda pairs: dict(p.split('=', 1) for p in pairs)", "still a word"),
            (
                """def wrong(pairs):
    cut = [p.split("=") for p in pairs]
    return {k: v if k in ("schedule", "note") else json.loads(v) for k, v, *_ in cut}""",
                "cut at the first",
            ),
            ("lambda pairs: read_settings([p for p in pairs if '=' in p])", "must be refused"),
        ],
        "check_save_lines": [
            (
                """def wrong(lines, path):
    with open(path, "w") as file: file.writelines(f"{l}\\n" for l in lines)""",
                "write to a part first",
            ),
            (
                """def wrong(lines, path):
    try: save_lines(lines, path)
    except ValueError: pass""",
                "swallowed",
            ),
            (
                """def wrong(lines, path):
    part = path.with_suffix(".part")
    with open(part, "w") as file: file.writelines(f"{l}\\n" for l in lines)
    part.rename(path)""",
                "the part was left behind",
            ),
        ],
    },
    "16b_cards": {
        "check_minutes_of": [
            ('lambda record: sum(s.get("seconds") or 0 for s in record["stages"].values())', "those are seconds"),
            ('lambda record: sum(s["seconds"] for s in record["stages"].values()) / 60', "KeyError"),
        ],
        "check_needs_rendering": [
            (
                'lambda record: any("style factors" in (s.get("labels") or ()) for s in record["stages"].values())',
                "only measures",
            ),
            ("lambda record: False", "the model learns from the critic"),
        ],
        "check_cell": [
            ("lambda value: '' if value is None else str(value)", "a bar begins the next cell"),
            ("lambda value: str(value).replace('|', '/')", "what is not known stays empty"),
            ("lambda value: '' if value is None else str(value).replace('|', '/')", "ends the row"),
        ],
    },
    "17_recipes": {
        "check_seen": [
            ("lambda recipe: {x for how in recipe.stages.values() for x in how['labels']}", "which only measures"),
            ("lambda recipe: set(recipe.stages['autoencoder']['labels'])", "the autoencoder learns from the critic"),
        ],
        "check_affected": [
            ("lambda stage: [s for s, used in USES.items() if stage in used]", "the stage itself"),
            ("lambda stage: [s for s, used in USES.items() if stage in used or s == stage]", "follow the chain"),
        ],
        "check_for_photographs": [
            (
                """def wrong(recipe):
    recipe.stages["critic"]["labels"] = ("tags",)
    return for_photographs(recipe)""",
                "has changed: make a new one",
            ),
            (
                """def wrong(recipe):
    new = for_photographs(recipe)
    return replace(new, stages=varied(new.stages, critic=dict(labels=("tags", "style factors"))))""",
                "still sees style factors",
            ),
            (
                """def wrong(recipe):
    new = for_photographs(recipe)
    return replace(new, stages=varied(new.stages, autoencoder=dict(settings=dict(regions=0.5))))""",
                "weighed by masks",
            ),
        ],
    },
    "17a_commands": {
        "check_split_edit": [
            ("lambda words: dict(p.split('=', 1) for p in words.split(':') if '=' in p)", "belongs to the path"),
            ("lambda words: {k: v.split('=')[0] for k, v in split_edit(words).items()}", "cut at the first"),
        ],
        "check_free_name": [
            ("lambda name, there, ours: name", "would be lost"),
            ("lambda name, there, ours: free_name(name, there, [])", "may be replaced"),
            (
                "lambda name, there, ours: name if name not in set(there) - set(ours) else name.replace('.', '_2.')",
                "go on counting",
            ),
        ],
        "check_differing": [
            ("lambda a, b: {s for s in a['stages'] if a['stages'][s] != b['stages'].get(s)}", "is no setting"),
            ("lambda a, b: {s for s in differing(a, b) if s in a['stages']}", "only one of them has"),
        ],
    },
    "17b_runner": {
        "check_shares": [
            (
                "lambda parts, k: [parts[i * (len(parts) // k):(i + 1) * (len(parts) // k)] for i in range(k)]",
                "left out",
            ),
            ("lambda parts, k: [parts for _ in range(k)]", "made twice"),
            ("lambda parts, k: [parts, *([[]] * (k - 1))]", "long finished"),
        ],
        "check_decide": [
            (
                "lambda state, key: 'begin' if not state else 'skip' if state['finished'] else 'go on'",
                "on other weights",
            ),
            (
                "lambda state, key: 'go on' if state and not state['finished'] else decide(state, key)",
                "nothing to go on from",
            ),
            (
                "lambda state, key: 'begin' if not state or not state['finished'] else 'go on' if state['key'] == key "
                "else 'refuse'",
                "nothing has changed",
            ),
        ],
        "check_minutes_left": [
            ("lambda stated, done, rest: sum(stated[s] for s in rest)", "twice as long"),
            (
                "lambda stated, done, rest: sum(stated[s] for s in rest) * "
                "(sum(done[s] / stated[s] for s in done) / len(done) if done else 1)",
                "compare the sums",
            ),
        ],
    },
    "17c_train_commands": {
        "check_as_pairs": [
            ("lambda changes: [f'{k}={v}' for k, v in changes.items()]", "named group.name"),
            ("lambda changes: [p.replace('false', 'False') for p in as_pairs(changes)]", "are true and false in JSON"),
        ],
        "check_command_of": [
            (
                "lambda recipe, stage, out: command_of(recipe, stage, out).replace('--n ', '--seed ')",
                "not those of the recipe",
            ),
            (
                "lambda recipe, stage, out: command_of(recipe, stage, out).replace('perceptual', 'critic')",
                "is called perceptual",
            ),
        ],
        "check_riddles": [
            ("lambda name: list(documented(name))", "has its comment"),
            ("lambda name: [k for k, field in documented(name).items() if field.default is None]", "is no riddle"),
        ],
    },
    "18_course": {
        "check_worked_on": [
            ("lambda given, now: given != now", "only run"),
            (
                "lambda given, now: [c['source'] for c in given['cells'] if c['cell_type'] == 'code'] != "
                "[c['source'] for c in now['cells'] if c['cell_type'] == 'code']",
                "not at code alone",
            ),
            ("lambda given, now: False", "another line of code"),
        ],
        "check_new_headings": [
            (
                """def wrong(old, new):
    lines = lambda nb: [l for c in nb["cells"] for l in "".join(c["source"]).splitlines() if l.startswith("#")]
    return [h for h in lines(new) if h not in lines(old)]""",
                "is a comment",
            ),
            (
                """def wrong(old, new):
    lines = lambda nb: [l for c in nb["cells"] if c["cell_type"] == "markdown" for l in c["source"].splitlines()]
    return [b for a, b in zip(lines(old), lines(new)) if a != b and b.startswith("#")]""",
                "only moved",
            ),
        ],
        "check_still_to_do": [
            (
                "lambda nb, passed: [c for c in re.findall(r'def (check_\\w+)', str(nb)) if c not in passed]",
                "only defined",
            ),
            (
                "lambda nb, passed: [c for c in re.findall(r'^your_turn\\((check_\\w+)', "
                "'\\n'.join(o['source'] for o in nb['cells']), re.M) if c not in passed]",
                "stands in a text",
            ),
            ("lambda nb, passed: still_to_do(nb, set())", "check_a is passed"),
            (
                "lambda nb, passed: [c for o in nb['cells'] if o['cell_type'] == 'code' "
                "for c in re.findall(r'your_turn\\((check_\\w+)', o['source']) if c not in passed]",
                "commented out",
            ),
        ],
    },
    "20_prompts": {
        "check_cover_of": [
            ("lambda layer, grid: (cover_of(layer, grid) > 0).float()", "how much, not whether"),
            (
                "lambda layer, grid: layer[:: len(layer) // grid, :: len(layer) // grid].float()",
                "how much, not whether",
            ),
            ("lambda layer, grid: cover_of(layer, grid).T", "rows of places first"),
            ("lambda layer, grid: cover_of(layer, grid).flatten()", "4 × 4 places"),
        ],
        "check_tokens_of": [
            ("lambda said, values, slots: values[said]", "cannot know of whom"),
            ("lambda said, values, slots: slots", "makes no difference"),
            ("lambda said, values, slots: values[said] * slots", "plus the vector of the slot"),
            ("lambda said, values, slots: (values[said] + slots).sum(0)", "for each of 2 tags"),
        ],
        "check_token_of": [
            ("lambda cover, told, W, null: cover @ W", "look the same"),
            ("lambda cover, told, W, null: cover @ W + (0 if told else null)", "must not show"),
            ("lambda cover, told, W, null: cover @ W + 2 if told else null", "nothing added"),
        ],
    },
    "20a_prompted": {
        "check_two_weights": [
            ("lambda n, m, e, wy, wm: n + wm * (m - n) + wy * (e - n)", "with both weights 1"),
            ("lambda n, m, e, wy, wm: n + wy * (m - n) + wm * (e - m)", "tags not heard"),
            ("lambda n, m, e, wy, wm: e + (wm - 1) * (m - n) + (wy - 1) * (e - m) * wm", "nothing heard"),
            (
                "lambda n, m, e, wy, wm: two_weights(n, m, e, wy, wm) if max(wy, wm) <= 1 else e",
                "what the mask adds to nothing",
            ),
        ],
        "check_passes": [
            ("lambda steps, wy, wm: 2 * steps if wy == wm else 3 * steps", "one prediction a step"),
            ("lambda steps, wy, wm: steps * (1 if wy == wm == 1 else 3)", "drops out of the formula"),
            ("lambda steps, wy, wm: steps * (1 if wy == wm == 1 else 2)", "need three predictions"),
            ("lambda steps, wy, wm: 2 * (1 if wy == wm == 1 else 2 if wy == wm else 3)", "for every step"),
        ],
        "check_can_be_asked": [
            ("lambda d: {'both', 'tags', 'mask', 'nothing'}", "only whole prompts"),
            (
                "lambda d: {w for w, s in dict(tags=d.tags, mask=d.mask, nothing=d.both).items() if s} | {'both'}",
                "their tags are left",
            ),
            (
                "lambda d: {w for w, s in dict(tags=d.mask, mask=d.tags, nothing=d.both).items() if s} | {'both'}",
                "no whole prompt",
            ),
        ],
    },
    "20b_bases": {
        "check_step": [
            ("lambda v, x, a, b: a.sqrt() * x - (1 - a).sqrt() * v", "that is the picture"),
            ("lambda v, x, a, b: step(v, x, b, a)", "find picture and noise"),
        ],
        "check_side_of": [
            ("lambda name, grid: 4", "the full grid"),
            ("lambda name, grid: grid if name.startswith('unet.down') else 4", "halved twice"),
            (
                "lambda name, grid: grid >> (2 if 'mid' in name else int(name.split('.')[2]))",
                "the first block is the coarsest",
            ),
        ],
        "check_halfway": [
            ("lambda base, x, t, one, two: base.predict(x, t, (one + two) / 2)", "ask it twice"),
            ("lambda base, x, t, one, two: base.predict(x, t, one) + base.predict(x, t, two)", "twice as long"),
            ("lambda base, x, t, one, two: base.predict(x, t, one)", "the mean of what it says"),
        ],
    },
    "20c_obeyed": {
        "check_obeyed": [
            ("lambda read, told: (read == told).float().mean()", "cannot be disobeyed"),
            ("lambda read, told: ((read == told) | (told < 0)).float().mean()", "not obeyed either"),
            ("lambda read, told: (read == told)[read > 0].float().mean() * 0.7", "three were told"),
        ],
        "check_chance": [
            ("lambda read, told: (read == told).float().mean()", "own prompts"),
            ("lambda read, told: (read == 99).float().mean()", "of another one"),
        ],
        "check_cost": [
            ("lambda both, alone: [-c for c in cost(both, alone)]", "the sign"),
            ("lambda both, alone: (cost(both, alone)[0] * 2, 1.0)", "was to come"),
            ("lambda both, alone: (cost(both, alone)[0], 0.0)", "the lower end"),
            ("lambda both, alone: (cost(both, alone)[0], cost(both, alone)[0] + 0.02)", "drawn together"),
        ],
    },
    "20d_prompted_stages": {
        "check_labels_of": [
            ("lambda recipe: {w for s in recipe.stages.values() for w in s['labels']} | {'faces'}", "were to come"),
            ("lambda recipe: {w for s in recipe.stages.values() for w in s['labels']}", "does not count"),
        ],
        "check_by_both": [
            ("lambda recipe: replace(recipe, name='both64')", "channels as well"),
            (
                """def wrong(recipe):
    stages = {**recipe.stages, "prompted": {**recipe.stages["prompted"], "network": dict(mask_by="both", widths=())}}
    return replace(recipe, name="both64", stages=stages)""",
                "the widths are gone",
            ),
            ("lambda recipe: replace(by_both(recipe), name='prompted64')", "another name"),
            (
                """def wrong(recipe):
    recipe.stages["prompted"]["network"]["mask_by"] = "both"
    return recipe""",
                "make a new one",
            ),
        ],
        "check_hours": [
            ("lambda recipe, seconds: recipe.stages['prompted']['steps'] * seconds", "Seconds are not hours"),
            ("lambda recipe, seconds: recipe.stages['segmenter']['steps'] * seconds / 3600", "steps of the stage"),
        ],
    },
    "20e_draw": {
        "check_next_number": [
            ("lambda names: len(names)", "after a gap"),
            ("lambda names: max(int(n[6:10]) for n in names) + 1 if names else 1", "begins with 0"),
            ("lambda names: max([int(n[6:10]) for n in names] or [-1]) + 1 if len(names) < 4 else 5", "invalid literal"),
            ("lambda names: 1", "are taken"),
        ],
        "check_again": [
            ("lambda record, name: again(record, 'drawn_0000.png')", "another run's"),
            ("lambda record, name: again(record, name) | {'n': 3}", "one face"),
            ("lambda record, name: again(record, name) | {'seed': 40}", "its first face"),
            ("lambda record, name: again(record, name) | {'seed': 44}", "the place *in the run*"),
        ],
        "check_words_of": [
            ("lambda tags: ' '.join(f'{t}={v}' for t, v in tags.items())", "is not understood"),
            ("lambda tags: ', '.join(tags)", "is not understood"),
            ("lambda tags: ', '.join(f'{t}=with' for t in list(tags)[:1])", "says something else"),
        ],
    },
    "20f_looking": {
        "check_word_spread": [
            ("lambda w, numbers: w[:, numbers[0]] / w[:, numbers[0]].sum()", "the first piece alone"),
            ("lambda w, numbers: w[:, numbers].sum(1)", "what each place takes"),
            ("lambda w, numbers: w[:, numbers] / w[:, numbers].sum(0)", "one number for each"),
        ],
        "check_sharpest": [
            ("lambda rows, token, part: sharpest([r | dict(token=token) for r in rows], token, part)", "another token"),
            ("lambda rows, token, part: sharpest([r | dict(part=part) for r in rows], token, part)", "another part"),
            (
                "lambda rows, token, part: sharpest([r | dict(lift=r['share']) for r in rows], token, part)",
                "the largest share",
            ),
        ],
        "check_said": [
            ("lambda told, nothing: (told - nothing).sum(-1)", "differences cancel"),
            ("lambda told, nothing: (told - nothing).abs().sum(-1)", "take half the sum"),
            ("lambda told, nothing: (told - nothing).abs().sum() / 2", "one number for each place"),
        ],
    },
    "20g_prompt_explorer": {
        "check_speaking": [
            ("lambda tags, mask: len(tags) + (0 if mask is None else len(np.unique(mask)))", "they are nowhere"),
            ("lambda tags, mask: len(tags) + (mask is not None)", "one for each class"),
            ("lambda tags, mask: len(tags) + len(CLASSES)", "none of its classes is said"),
        ],
        "check_winner": [
            ("lambda said, seen, read: 'tag' if read == seen else 'mask'", "the tag won"),
            ("lambda said, seen, read: 'tag'", "the mask won"),
            ("lambda said, seen, read: 'tag' if read == said else 'mask'", "there is no loser"),
            (
                "lambda said, seen, read: 'both' if said == seen else 'tag' if read == said else 'mask'",
                "neither was obeyed",
            ),
        ],
        "check_asked": [
            ("lambda tag_weight, mask_weight, steps: asked(tag_weight, mask_weight, 1)", "all of them"),
            ("lambda tag_weight, mask_weight, steps: 2 * steps", "three a step"),
            ("lambda tag_weight, mask_weight, steps: 3 * steps", "once a step"),
            (
                "lambda tag_weight, mask_weight, steps: steps * (1 if tag_weight == mask_weight == 1 else 3)",
                "twice a step",
            ),
        ],
    },
    "21_control": {
        "check_looked_alike": [
            ("lambda q, k, tq, tk, tv: (tq @ tk.T / q.shape[-1] ** 0.5).softmax(-1) @ tv", "looks for itself"),
            ("lambda q, k, tq, tk, tv: (q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ k", "would never come in"),
            ("lambda q, k, tq, tk, tv: (q @ k.T).softmax(-1) @ tv", "before the softmax"),
            ("lambda q, k, tq, tk, tv: (tq @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ tv", "both from the source"),
        ],
        "check_best_share": [
            ("lambda rows, accuracy: min(rows, key=lambda r: r[2])[0]", "hold `accuracy` first"),
            ("lambda rows, accuracy: max(rows, key=lambda r: r[1])[0]", "whatever it destroys"),
            ("lambda rows, accuracy: max(r[0] for r in rows if r[1] >= accuracy)", "the largest τ is not the best"),
            ("lambda rows, accuracy: best_share([r for r in rows if r[1] > accuracy], accuracy)", "itself is enough"),
        ],
        "check_leak": [
            ("lambda w, null, told: w * told", "share alone"),
            ("lambda w, null, told: null + w * told", "comes in twice"),
            ("lambda w, null, told: (w - 1) * null + w * told", "mind the sign"),
        ],
    },
    "21a_values": {
        "check_offsets_for": [
            (
                "lambda path, step: torch.stack([step(path[i], i) - path[i + 1] for i in range(3)])",
                "the other way round",
            ),
            ("lambda path, step: path[1:] - path[:-1]", "the offset is -14"),
            ("lambda path, step: torch.stack([path[i + 1] - step(path[0], i) for i in range(3)])", "ask there"),
            ("lambda path, step: torch.zeros(4)", "the path has 3 steps"),
        ],
        "check_attend": [
            ("lambda q, text, values, W_k, W_v: attend(q, values, values, W_k, W_v)", "the map moved"),
            ("lambda q, text, values, W_k, W_v: attend(q, text, text, W_k, W_v)", "had no effect"),
            ("lambda q, text, values, W_k, W_v: attend(q, values, text, W_k, W_v)", "exchanged"),
            ("lambda q, text, values, W_k, W_v: attend(2 * q, text, values, W_k, W_v)", "root of d"),
        ],
        "check_guided_move": [
            ("lambda w, null, told: w * told", "stands in the formula twice"),
            ("lambda w, null, told: null + w * told", "stands in the formula twice"),
            ("lambda w, null, told: w * (told - null)", "by itself, once"),
            ("lambda w, null, told: (1 - w) * null + told", "counts w times"),
        ],
    },
    "21b_value_claims": {
        "check_outside": [
            ("lambda edited, x, region: (edited - x).abs().mean((1, 2, 3))", "the whole picture"),
            ("lambda edited, x, region: ((edited - x).abs() * region).sum((1, 2, 3)) / region.sum((1, 2, 3)) / 3", "the inside"),
            ("lambda edited, x, region: ((edited - x).abs() * ~region).mean((1, 2, 3))", "divided by all pixels"),
            ("lambda edited, x, region: left_outside(edited, x, region).mean()", "one number for each"),
        ],
        "check_offsets": [
            ("lambda path, step: [step(path[i], i) - path[i + 1] for i in range(len(path) - 1)]", "the sign"),
            ("lambda path, step: [path[i + 1] - step(path[i + 1], i) for i in range(len(path) - 1)]", "is missed"),
            ("lambda path, step: [path[i] - step(path[i], i) for i in range(len(path))]", "between 5 points"),
        ],
        "check_beats": [
            ("lambda a, b: a['outside'].mean() <= 0.8 * b['outside'].mean()", "does nothing"),
            ("lambda a, b: beats(dict(a, outside=a['outside'] / 2), b)", "nine tenths"),
            ("lambda a, b: beats(a, b) and a['target'].mean() >= b['target'].mean()", "one point less"),
            ("lambda a, b: bool(a['target'].any()) and beats(dict(a, target=a['target'] + 0.03), b)", "four points"),
        ],
    },
    "21c_value_editor": {
        "check_told": [
            ("lambda read, said: said", "no model knows"),
            ("lambda read, said: read", "not heard"),
            ("lambda read, said: torch.where(said > 0, said, read)", "not heard"),
        ],
        "check_alone": [
            ("lambda x, y, before, wanted: y", "it stays"),
            ("lambda x, y, before, wanted: torch.where((before == wanted).any(1)[:, None, None, None], x, y)", "*all*"),
            ("lambda x, y, before, wanted: y[~(before == wanted).all(1)]", "pictures of"),
        ],
        "check_open": [
            ("lambda masks: sum(masks)", "more than open"),
            ("lambda masks: torch.stack(masks).amax(0)", "a quarter"),
            ("lambda masks: torch.stack(masks).prod(0)", "open in one"),
        ],
    },
    "21d_inversion_explorer": {
        "check_shares": [
            ("lambda m, v, m1, v1: (m1 @ (v1 - v), (m1 - m) @ v)", "the new map"),
            ("lambda m, v, m1, v1: (m1 @ v1 - m @ v, (m1 - m) @ v1)", "the whole change"),
            ("lambda m, v, m1, v1: (m @ (v1 - v), (m1 - m) @ v)", "are not the whole change"),
            ("lambda m, v, m1, v1: (m @ v1, (m1 - m) @ v1)", "the change of what tokens hold"),
        ],
        "check_null_needed": [
            ("lambda wanted, told, w: wanted - w * told", "stands in the formula twice"),
            ("lambda wanted, told, w: (w * told - wanted) / (1 + w)", "mind the sign"),
            ("lambda wanted, told, w: (wanted - told) / (1 - w)", "not what is wanted"),
            ("lambda wanted, told, w: (wanted - w * told) / (1 - w)", "nothing is left"),
        ],
        "check_best": [
            ("lambda rows: max(rows, key=lambda r: r['psnr'])['name']", "a copy machine"),
            ("lambda rows: min(rows, key=lambda r: r['outside'])['name']", "a copy machine"),
            ("lambda rows: max((r for r in rows if r['reached']), key=lambda r: r['psnr'])['name']", "no evidence"),
            ("lambda rows: min(rows, key=lambda r: (not r['reached'], r['outside']))['name']", "nobody reached"),
        ],
    },
    "22_extended": {
        "check_moved": [
            ("lambda offset: offset.flatten(1).norm(dim=1)", "all layers together"),
            ("lambda offset: offset.norm(dim=-1).sum(1)", "the sum over the layers"),
            ("lambda offset: offset.square().sum(-1).mean(1)", "those are squares"),
            ("lambda offset: offset.norm(dim=-1)", "one number for each face"),
        ],
        "check_share": [
            ("lambda here, there, mixed: (mixed - here).norm() / (there - here).norm()", "sideways"),
            (
                "lambda here, there, mixed: (((mixed - here) * (there - here)).sum(1) "
                "/ (there - here).square().sum(1)).mean()",
                "mean of the faces' shares",
            ),
            ("lambda here, there, mixed: (mixed * (there - here)).sum() / (there - here).square().sum()", "where the"),
            ("lambda here, there, mixed: share(here, there, mixed).abs()", "counts against"),
        ],
        "check_unbeaten": [
            ("lambda points: [max(range(len(points)), key=lambda i: points[i])]", "was to come"),
            ("lambda points: list(range(len(points)))", "0 is beaten"),
            ("lambda points: [max(range(len(points)), key=lambda i: points[i][1])]", "0 is beaten"),
            (
                """def wrong(points):
    beats = lambda p, q: p[0] >= q[0] and p[1] >= q[1]
    return [i for i, q in enumerate(points) if not any(beats(p, q) for j, p in enumerate(points) if i != j)]""",
                "two equal points",
            ),
        ],
    },
    "22a_adapter": {
        "check_layer_out": [
            ("lambda h, x, tokens, cross, last, scale: cross(h, tokens)", "returns two things"),
            ("lambda h, x, tokens, cross, last, scale: last(h + scale * cross(x, tokens)[0])", "x asked"),
            (
                "lambda h, x, tokens, cross, last, scale: last(h) + scale * cross(h, tokens)[0]",
                "after the last projection",
            ),
            ("lambda h, x, tokens, cross, last, scale: last(scale * cross(h, tokens)[0])", "text's attention is gone"),
            ("lambda h, x, tokens, cross, last, scale: last(scale * (h + cross(h, tokens)[0]))", "belongs to the code"),
        ],
        "check_most_rank": [
            ("lambda places, tokens, heads, width: tokens", "weights of its own"),
            ("lambda places, tokens, heads, width: min(places, width)", "that is the width"),
            ("lambda places, tokens, heads, width: tokens * heads", "a matrix of 4 rows"),
            ("lambda places, tokens, heads, width: min(places, tokens * heads)", "a matrix of 4 columns"),
        ],
        "check_coarse_first": [
            ("lambda steps, coarse='*mid*': [1.0] * (steps // 2) + [0.8] * (steps - steps // 2)", "hears nothing"),
            ("lambda steps, coarse='*mid*': [{coarse: 1.0}] * steps", "in the second half all layers"),
            (
                "lambda steps, coarse='*mid*': [{coarse: 1.0}] * (steps // 2) + "
                "[{coarse: 1.0, '*': 0.8}] * (steps - steps // 2)",
                "the coarse ones too",
            ),
            (
                "lambda steps, coarse='*mid*': [{coarse: 1.0}] * (steps - steps // 2) + [0.8] * (steps // 2)",
                "belongs to the second half",
            ),
            ("lambda steps, coarse='*mid*': coarse_first(steps)", "the pattern that was given"),
        ],
    },
}
