// The page as the server gives it out.

import { start } from "./main.js";

start();
